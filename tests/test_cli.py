"""The command line, as a user meets it: words in, text and exit codes out."""
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pandas as pd
import pytest
import warm

import lottery_nb
from conftest import ROOT
from lottery_nb.cli import GROUPS, main
from lottery_nb.grid import read_grid
from lottery_nb.spec import SPECS, MagnitudeSpec, StructuredSpec, TicketSpec
from lottery_nb.store import COLUMNS, SCHEMA, finish, open_run, results, write_table

COMMAND = Path(sys.executable).parent/"lottery-nb"


@pytest.fixture
def words(tiny_model, tiny_data, tmp_path):
    "A run that takes seconds"
    return ["run", "ticket", "--task", str(tiny_data), "--model", str(tiny_model), "--method", "omp", "--sparsity", "0.5", "--max-steps", "4", "--runs", str(tmp_path/"runs")]


def lottery(*words, command=None, **settings):
    "A command that begins warm, or the one that a user types, from a cold start"
    return subprocess.run([command or warm.command("lottery-nb"), *map(str, words)], capture_output=True, text=True, **settings)


def test_a_run_its_repetition_and_its_ticket(words, tmp_path):
    first = lottery(*words, "--json", command=COMMAND)
    assert first.returncode == 0, first.stderr
    line = json.loads(first.stdout.splitlines()[-1])
    assert {"id", "folder", "task", "metric", "score", "full_score", "sparsity"} <= set(line)
    assert abs(line["sparsity"] - .5) < 1e-3
    folder = Path(line["folder"])
    assert {"spec.json", "run.ipynb", "ticket", "result.json", "log.txt"} <= {p.name for p in folder.iterdir()}
    again = lottery(*words, "--json")
    assert again.returncode == 0 and "already done" in again.stdout
    assert json.loads(again.stdout.splitlines()[-1]) == line
    before = (folder/"result.json").read_bytes()
    forced = lottery(*words, "--force")
    assert forced.returncode == 0 and (folder/"result.json").read_bytes() == before
    assert lottery("ticket", "verify", folder).returncode == 0
    assert json.loads(lottery("ticket", "info", folder, "--json").stdout)["method"] == "omp"
    table = json.loads(lottery("results", "--runs", tmp_path/"runs", "--format", "json").stdout)
    assert [row["id"] for row in table] == [line["id"]]
    assert "\n\nwinning tickets, of 50% removed: " in lottery("results", "--runs", tmp_path/"runs", "--summary", command=COMMAND).stdout
    assert lottery("results", "--runs", tmp_path/"runs", "--parquet", tmp_path/"all.parquet").stdout.startswith("1 rows in ")
    exported = pd.read_parquet(tmp_path/"all.parquet")
    assert exported.id.tolist() == [line["id"]] and abs(exported.score[0] - line["score"]) < 1e-12
    assert {name for name in exported if not name.startswith(("scores.", "full_scores."))} <= set(COLUMNS) | set(TicketSpec.__dataclass_fields__)
    mask = folder/"ticket"/"mask.safetensors"
    mask.write_bytes(mask.read_bytes()[:-1])
    damaged = lottery("ticket", "verify", folder)
    assert damaged.returncode == 2 and "mask.safetensors" in damaged.stderr


def test_a_kept_model_answers_from_its_own_vocabulary(words, tmp_path, tiny_model):
    from transformers import AutoTokenizer, pipeline
    assert lottery(*words, "--keep-model", "true").returncode == 0
    model = next((tmp_path/"runs").glob("*/retrained/model"))
    assert AutoTokenizer.from_pretrained(model).get_vocab() == AutoTokenizer.from_pretrained(tiny_model).get_vocab()
    assert pipeline("text-classification", model=str(model))("the film was good")[0]["label"] in ("yes", "no")


def test_dry_run_writes_nothing(words, tmp_path, capsys):
    assert main([*words, "--dry-run"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["method"] == "omp" and shown["max_steps"] == 4 and not (tmp_path/"runs").exists()


BAD = {
    "task": (["--task", "sst3"], "task must be one of"),
    "method": (["--method", "opm"], "method must be one of"),
    "parameter": (["--sparsty", "0.5"], "did you mean 'sparsity'"),
    "sparsity": (["--sparsity", "1.0"], "sparsity must be in [0, 1), got 1.0"),
    "number": (["--sparsity", "half"], "sparsity must be float, got 'half'"),
    "missing value": (["--sparsity"], "'--sparsity' requires an argument"),
    "stray word": (["sst2"], "expected --FIELD VALUE, got 'sst2'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_words_end_with_one_sentence_and_2(name, words, tmp_path, capsys):
    extra, message = BAD[name]
    assert main([*words, *extra]) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said and said.count("\n") == 1
    assert not (tmp_path/"runs").exists()


READERS = (["results"], ["results", "--summary"], ["claims", "chen_2020"], ["claims", "prasanna_2020"], ["report", "liu_2022"], ["report", "attention"])

@pytest.mark.parametrize("case", READERS, ids=" ".join)
def test_a_slip_of_the_pen_is_no_empty_study(case, tmp_path, capsys):
    "Runs that are named and are not there, or are something else, are a mistake; the usual folder may be absent"
    (tmp_path/"notes.txt").write_text("no table")
    for name, why in (("rums", "which does not exist"), ("notes.txt", "got")):
        assert main([*case, "--runs", str(tmp_path/name)]) == 2
        said = capsys.readouterr().err
        assert "runs must be a folder of runs" in said and f"{tmp_path/name}" in said and why in said and said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("more", [["--second", "rums"], ["--published", "rums"]], ids=" ".join)
def test_what_is_laid_beside_must_be_there_too(more, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", "prasanna_2020", *more]) == 2
    assert f"got {tmp_path/'rums'}" in (said := capsys.readouterr().err) and said.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("case, message", [(["run", "tocket"], "did you mean 'ticket'"), (["sweep", "no.yaml"], "no.yaml does not exist"), (["ticket", "info", "nowhere"], "nowhere does not exist"),
                                           (["results", "--format", "xml"], "format must be one of"), (["fly"], "fly")])
def test_other_commands_refuse_bad_input_alike(case, message, capsys):
    assert main(case) == 2
    assert message in capsys.readouterr().err


def test_bad_input_found_inside_the_notebook_is_2_and_leaves_nothing(words, tmp_path):
    missing = lottery(*words, "--task", "sst2", "--data-dir", tmp_path/"nowhere")
    assert missing.returncode == 2 and "nowhere" in missing.stderr and "Traceback" not in missing.stderr, missing.stderr
    model = lottery(*words, "--model", tmp_path/"no_model")
    assert model.returncode == 2 and "no_model" in model.stderr, model.stderr
    assert [p.name for p in (tmp_path/"runs").glob("*/") if p.name != "stages"] == []


def test_an_unwritable_runs_folder_is_2(words, tmp_path):
    (tmp_path/"blocked").write_text("")
    blocked = lottery(*words, "--runs", tmp_path/"blocked"/"runs")
    assert blocked.returncode == 2 and "blocked" in blocked.stderr and "Traceback" not in blocked.stderr


def test_a_full_disk_is_2(words, monkeypatch, capsys):
    import lottery_nb.cli as cli

    def full(*_, **__): raise OSError(28, "No space left on device", "runs/x")

    monkeypatch.setattr(cli.Worker, "execute", full)
    assert main(words) == 2
    assert "runs/x could not be written, the disk or quota is full: free space there" in capsys.readouterr().err


def test_a_failed_run_is_1_and_keeps_its_notebook(words, tiny_model, tmp_path, monkeypatch):
    import shutil
    broken = tmp_path/"broken"
    shutil.copytree(tiny_model, broken)
    (broken/"model.safetensors").write_bytes((tiny_model/"model.safetensors").read_bytes()[:-3000])
    failed = lottery(*words, "--model", broken)
    assert failed.returncode in (1, 2) and "Traceback" not in failed.stderr
    if failed.returncode == 1: assert list((tmp_path/"runs").glob("*/run.ipynb"))


def test_a_killed_run_resumes_to_the_same_result(words, tmp_path):
    chain = [*words, "--method", "imp", "--sparsity", "0.3", "--max-steps", "30"]
    process = subprocess.Popen([warm.command("lottery-nb"), *chain], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stages = tmp_path/"runs"/"stages"
    deadline = time.time() + 120
    while time.time() < deadline and not list(stages.glob("imp-*-s20-*")): time.sleep(.02)
    warm.kill(process)
    assert not list((tmp_path/"runs").glob("*/result.json"))
    resumed = lottery(*chain, "--json")
    assert resumed.returncode == 0, resumed.stderr
    whole = lottery(*chain[:-1], "30", "--runs", tmp_path/"whole", "--json")
    assert whole.returncode == 0, whole.stderr
    one, two = (Path(json.loads(done.stdout.splitlines()[-1])["folder"]) for done in (resumed, whole))
    assert {p.name: p.read_bytes() for p in (one/"ticket").iterdir()} == {p.name: p.read_bytes() for p in (two/"ticket").iterdir()}
    assert (one/"result.json").read_bytes() == (two/"result.json").read_bytes()


def test_a_sweep_goes_on_after_a_failure_and_ends_with_1(tiny_model, tiny_data, tmp_path):
    grid = tmp_path/"grid.yaml"
    grid.write_text(f"template: ticket\ntask: [{tiny_data}, {tmp_path/'none.csv'}]\nmodel: {tiny_model}\nmethod: [omp, random]\nsparsity: 0.5\nmax_steps: 2\n")
    done = lottery("sweep", grid, "--runs", tmp_path/"runs", "--workers", "2")
    assert done.returncode == 1 and "2 of 4 runs failed" in done.stderr and "none.csv" in done.stderr
    assert len(done.stderr.split("runs failed:\n")[1].splitlines()) == 1      # one reason, said once
    assert len(list((tmp_path/"runs").glob("*/result.json"))) == 2
    assert sum(run["done"] for run in json.loads(lottery("sweep", grid, "--runs", tmp_path/"runs", "--dry-run", "--json", "--step-time", "1").stdout)["runs"]) == 2


def test_doctor_is_content_here(tmp_path, capsys):
    assert main(["doctor", "--runs", str(tmp_path)]) == 0
    assert "torch" in capsys.readouterr().out
    (tmp_path/"file").write_text("")
    assert main(["doctor", "--runs", str(tmp_path/"file"/"runs")]) == 1
    assert "PROBLEM" in capsys.readouterr().out


@pytest.mark.parametrize("template", SPECS)
def test_help_names_every_field_in_its_group(template, capsys):
    assert main(["run", template, "--help"]) == 0
    shown = capsys.readouterr().out
    panels = dict(re.findall(r"╭─ ([A-Z][a-z ]+?) ─+╮\n(.*?)╰", shown, re.S))
    for field in fields(SPECS[template]):
        panel = next(panels[group] for group, names in GROUPS.items() if field.name in names.split())
        assert re.search(rf"--{field.name.replace('_', '-')} +(<{get_type_hints(SPECS[template])[field.name].__name__}>|\w+\|)", panel), field.name
    assert "[default: 0]" in panels["Data"] and {"Data", "Training", "Options"} <= set(panels)


def test_help_says_types_choices_and_templates(capsys):
    assert main(["run", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(re.search(rf"│ {template} +\w", shown) for template in SPECS)
    assert main(["run", "ticket", "--help"]) == 0
    shown = " ".join(re.sub(r"[│\n]", " ", capsys.readouterr().out).split())
    for said in ("--sparsity <float>", "--seed <int>", "--keep-model true|false", "--movement hard|soft", "encoder+embeddings+pooler", "[second text,] label"):
        assert said in shown
    assert main(["sweep", "--help"]) == 0
    assert "lottery-nb[ray]" in capsys.readouterr().out


def test_version_and_the_module_as_a_command():
    for command in ([COMMAND], [sys.executable, "-m", "lottery_nb"]):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
        assert done.stdout == f"lottery-nb {lottery_nb.__version__}\n"
    assert subprocess.run([sys.executable, "-m", "lottery_nb", "fly"], capture_output=True).returncode == 2


@pytest.mark.parametrize("typed, offered", [("ru", ["run"]), ("run str", ["structured"]), ("run ticket --mask-ra", ["--mask-rank"]), ("run ticket --mask-rank ", ["signed", "absolute"]),
                                            ("sweep chen_2020_m", ["chen_2020_micro"]), ("run tocket --se", []), ("run no.ipynb --se", [])])
def test_the_shell_completes(typed, offered):
    words = f"lottery-nb {typed}"
    settings = os.environ | {"_LOTTERY_NB_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    done = subprocess.run([COMMAND], capture_output=True, text=True, env=settings)
    assert (done.stdout.split(), done.stderr) == (offered, "")


def test_a_copied_template_is_run_by_its_path(words, tmp_path, tiny_data):
    mine = tmp_path/"mine.ipynb"
    assert lottery("copy", "ticket", mine).returncode == 0
    again = lottery("copy", "ticket", mine)
    assert again.returncode == 2 and "mine.ipynb exists already" in again.stderr
    spec = json.loads(lottery(*words, "--dry-run").stdout)
    assert json.loads(lottery("run", mine, *words[2:], "--dry-run").stdout) == spec   # not edited: the same run
    text = mine.read_text().replace('method: str = \\"imp\\"', 'method: str = \\"random\\"').replace("finish(run, **", "finish(run, remark='mine', **")
    mine.write_text(text)
    done = lottery("run", mine, *[word for word in words[2:] if word not in ("--method", "omp")], "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["method"], result["remark"]) == ("random", "mine")   # its own default, its own code
    assert result["id"] != Path(json.loads(lottery(*words, "--method", "random", "--dry-run").stdout)["folder"]).name
    assert json.loads((Path(result["folder"])/"inputs.json").read_text()).keys() >= {"notebook"}
    assert "already done" in lottery("run", mine, *[word for word in words[2:] if word not in ("--method", "omp")]).stdout


@pytest.mark.parametrize("old, new, message", [("spec_from(\\\"ticket\\\"", "spec_from(\\\"tocket\\\"", "did you mean 'ticket'"), ("spec_from(", "my_spec(", "must say once which template it comes from"),
                                               ("task: str = ", "task: str = str + ", "must hold plain values, a line"), ("\"cells\"", "\"sells\"", "is not a notebook"),
                                               ("\"parameters\"", "\"settings\"", "exactly one cell tagged 'parameters'")])
def test_a_notebook_that_no_longer_is_a_template_is_2(old, new, message, tmp_path, capsys):
    assert main(["copy", "ticket", str(tmp_path/"mine.ipynb")]) == 0
    text = (tmp_path/"mine.ipynb").read_text()
    assert old in text
    (tmp_path/"mine.ipynb").write_text(text.replace(old, new))
    assert main(["run", str(tmp_path/"mine.ipynb"), "--runs", str(tmp_path/"runs")]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and "LOTTERY_NB_NOTEBOOK" not in os.environ
    assert not list((tmp_path/"runs").glob("*"))


def test_grids_are_listed_and_taken_by_name(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["grids", "--json"]) == 0
    listed = {row["grid"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(listed) == {path.stem for path in (ROOT/"grids").glob("*.yaml")}
    assert main(["sweep", "chen_2020_smoke", "--print"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == listed["chen_2020_smoke"]["runs"] == len(read_grid(ROOT/"grids"/"chen_2020_smoke.yaml"))
    assert main(["copy", "chen_2020_smoke"]) == 0
    assert (tmp_path/"chen_2020_smoke.yaml").read_bytes() == (ROOT/"grids"/"chen_2020_smoke.yaml").read_bytes()
    assert main(["sweep", "chen_2020_mikro"]) == 2
    assert "chen_2020_mikro does not exist; shipped grids of a similar name: chen_2020_micro" in capsys.readouterr().err
    (tmp_path/"demo").write_text("seed: [0, 1]\n")
    assert len(read_grid("demo")) == 2   # a file of one's own comes first


def test_status_is_light(tmp_path):
    "Neither torch nor pandas: it answers at once"
    (tmp_path/"grid.yaml").write_text("seed: [0, 1]\n")
    code = f"import sys; from lottery_nb.cli import main; main(['status', {str(tmp_path/'grid.yaml')!r}, '--runs', {str(tmp_path/'runs')!r}]); print([m for m in ('torch', 'transformers', 'pandas', 'papermill') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]" and done.stdout.splitlines()[1].split() == ["ticket", "sst2", "imp", "0", "0", "0", "2"]
    assert not (tmp_path/"runs").exists()


def test_status_follows_a_sweep_through_kill_and_failure(tiny_model, tiny_data, tmp_path):
    (tmp_path/"grid.yaml").write_text(f"template: ticket\ntask: {tiny_data}\nmodel: [{tiny_model}, {tmp_path/'broken'}]\nmethod: omp\nsparsity: 0.5\nmax_steps: 3000\nmax_length: 16\n")
    states = lambda: json.loads(lottery("status", tmp_path/"grid.yaml", "--runs", tmp_path/"runs", "--json").stdout)["total"]
    process = subprocess.Popen([warm.command("lottery-nb"), "sweep", tmp_path/"grid.yaml", "--runs", tmp_path/"runs"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while time.time() < deadline and not states()["running"]: time.sleep(.1)
    assert states() == dict(done=0, running=1, failed=0, waiting=1)
    warm.kill(process)
    while time.time() < deadline and states()["running"]: time.sleep(.1)
    assert states() == dict(done=0, running=0, failed=0, waiting=2)
    for folder in (tmp_path/"runs").glob("reviews-*"): (folder/"failed.txt").write_text("ZeroDivisionError\n")
    assert states()["failed"] == 1 and "failed.txt" in lottery("status", tmp_path/"grid.yaml", "--runs", tmp_path/"runs").stdout


@pytest.mark.parametrize("words, message", [
    (["--gpus", "0,x"], "such as 0,1; got '0,x'"), (["--gpus", "0,0"], "different numbers"), (["--gpus", "1,7"], "there is no GPU 7; this process sees 2 GPU(s)"), (["--gpus", ""], "got ''"),
    (["--gpus", "0", "--workers", "2"], "workers 2 and gpus 0 contradict"), (["--runs-per-gpu", "2"], "needs --gpus"), (["--gpus", "0", "--runs-per-gpu", "0"], "runs-per-gpu must be at least 1"),
    (["--workers", "0"], "workers must be at least 1, got 0"), (["--step-time", "1"], "belong to --dry-run"), (["--json"], "belong to --dry-run"), (["--list"], "belong to --dry-run")], ids=" ".join)
def test_bad_devices_are_2_before_anything_runs(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lottery_nb.cli.visible_gpus", lambda: ["0", "1"])
    (tmp_path/"grid.yaml").write_text("template: ticket\n")
    assert main(["sweep", str(tmp_path/"grid.yaml"), "--runs", str(tmp_path/"runs"), *words]) == 2
    assert message in capsys.readouterr().err and not (tmp_path/"runs").exists()


def test_the_export_holds_every_template_and_names_its_schema(tmp_path):
    "Columns that a template lacks are empty; whole numbers stay whole"
    from pyarrow import parquet
    finish(open_run(TicketSpec(rewind=None), tmp_path), metric="accuracy", score=.5, sparsity=.7, kept=3, total=10, mlm_loss=None, scores={"accuracy": .5})
    finish(open_run(StructuredSpec(task="rte"), tmp_path), metric="accuracy", score=.5, sparsity=.2, good_heads=7, majority=.5, remark="all gone")
    finish(open_run(MagnitudeSpec(iterations=10), tmp_path), metric="accuracy", score=.5, sparsity=.2, good_size=.8)
    path = write_table(results(tmp_path), tmp_path/"all.parquet")
    table = pd.read_parquet(path)
    assert parquet.read_schema(path).metadata[b"schema"] == str(SCHEMA).encode()
    assert sorted(table.template) == ["magnitude", "structured", "ticket"]
    assert table.kept.dropna().tolist() == [3] and str(table.kept.dtype) == "Int64" and table.good_heads.dropna().tolist() == [7]
    assert table.sparsity.notna().all() and table.asked_sparsity.notna().sum() == 1


@pytest.fixture
def other_version(tmp_path):
    "Two runs that a later version wrote"
    for seed in (0, 1):
        folder = open_run(TicketSpec(task="mrpc", seed=seed), tmp_path/"runs")
        result = finish(folder, task="mrpc", metric="accuracy", score=.5, sparsity=.7)
        (folder/"result.json").write_text(json.dumps(result | {"schema": SCHEMA + 1}))
    (tmp_path/"grid.yaml").write_text("task: mrpc\nseed: [0, 1]\n")
    return ["--runs", str(tmp_path/"runs")]


@pytest.mark.parametrize("command, code", [(["results"], 1), (["status", "{grid}"], 2), (["sweep", "{grid}"], 2), (["run", "ticket", "--task", "mrpc"], 2)])
def test_a_folder_of_another_version_is_said_once(command, code, other_version, tmp_path, capsys):
    assert main([word.format(grid=tmp_path/"grid.yaml") for word in command] + other_version) == code
    said = capsys.readouterr().err
    assert said.count(f"has schema {SCHEMA + 1}, this version reads {SCHEMA}") == 1 and "another --runs folder" in said
    assert code == 2 or "2 results are of another version; the first: " in said


def test_doctor_names_remedies(tmp_path, capsys, monkeypatch):
    from lottery_nb import cli
    monkeypatch.setattr(cli, "hub_check", lambda: cli.Check("hub", None, "away", "look at the network"))
    monkeypatch.setattr(cli, "kernel_check", lambda root: cli.Check("kernel", False, "does not start", "pip install -U ipykernel"))
    monkeypatch.setenv("LOTTERY_NB_DATA", str(tmp_path/"none"))
    assert main(["doctor", "--runs", str(tmp_path/"runs")]) == 1
    said = capsys.readouterr().out
    assert {"note     hub", "PROBLEM  kernel", "PROBLEM  data"} <= {line[:15].rstrip() for line in said.splitlines()} | {line[:16].rstrip() for line in said.splitlines()}
    assert said.endswith("hub: look at the network\ndata: LOTTERY_NB_DATA must name a folder: make it, or unset it\nkernel: pip install -U ipykernel\n")


def test_doctor_sees_templates_disk_and_gpus(tmp_path, monkeypatch):
    import shutil
    from types import SimpleNamespace

    import torch

    from lottery_nb import cli
    assert [check.name for check in cli.template_checks() if check.good] == [f"template {name}" for name in SPECS]
    untagged = tmp_path/"untagged.ipynb"
    untagged.write_text('{"cells": []}')
    monkeypatch.setattr(cli, "template_path", lambda name: untagged)
    assert all(check.good is False and "exactly one cell tagged 'parameters'" in check.found for check in cli.template_checks())
    for free, good in ((10**10, True), (10**9, None), (10**8, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
        assert cli.disk_check(tmp_path/"not"/"there").good is good
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: SimpleNamespace(name=f"GPU {number}", total_memory=8 * 2**30))
    assert cli.device_check()[1:3] == (True, "GPU 0 (8 GiB), GPU 1 (8 GiB)")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert cli.device_check().good is None and "CUDA_VISIBLE_DEVICES" in cli.device_check().remedy


def test_doctor_asks_the_hub_and_does_not_wait_for_it(monkeypatch):
    import socket
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    from huggingface_hub import constants

    from lottery_nb import cli

    class Refusing(BaseHTTPRequestHandler):
        def do_HEAD(self): self.send_error(403)

        def log_message(self, *_): pass

    server = HTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    for name in ("http_proxy", "HTTP_PROXY"): monkeypatch.delenv(name, raising=False)
    assert cli.hub_check().good is True   # it answers, whatever it says
    server.shutdown()
    server.server_close()
    assert cli.hub_check().good is None and "refused" in cli.hub_check().found
    with socket.create_server(("127.0.0.1", 0)) as silent:   # takes the connection and says nothing
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert cli.hub_check(patience=.3).good is None
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in cli.hub_check().found


FOLLOWER = """
import json, types
context_vars = types.SimpleNamespace(current_space_id=types.SimpleNamespace(get=lambda: None))
config = type("Config", (dict,), {"update": lambda self, *_, **__: None})()
def init(**settings): note("init", settings["name"])
def log(values, **_): note("log", sorted(values))
def finish(): note("finish", None)
def note(*what):
    with open(PATH, "a") as file: file.write(json.dumps(what) + chr(10))
"""


def test_trainings_are_followed_and_give_the_same_result(words, tmp_path):
    (tmp_path/"modules").mkdir()
    (tmp_path/"modules"/"trackio.py").write_text(FOLLOWER.replace("PATH", repr(str(tmp_path/"followed"))))
    plain = lottery(*words, "--runs", tmp_path/"plain", "--json")
    followed = lottery(*words, "--report-to", "trackio", "--json", env=os.environ | {"PYTHONPATH": str(tmp_path/"modules")})
    assert followed.returncode == 0, followed.stderr
    told = [json.loads(line) for line in (tmp_path/"followed").read_text().splitlines()]
    names = [name for what, name in told if what == "init"]
    assert len(names) == 2 and names[0].startswith("stages/dense-reviews-r0-") and names[1].endswith("/retrained")   # one name a training
    assert sum(what == "log" and "train/loss" in values for what, values in told) >= 2 * 4
    one, two = (Path(json.loads(done.stdout.splitlines()[-1])["folder"]) for done in (plain, followed))
    assert one.name == two.name and (one/"result.json").read_bytes() == (two/"result.json").read_bytes()


@pytest.mark.parametrize("name, message", [("visdom", "report_to must be one of tensorboard, wandb, trackio; got 'visdom'"), ("no_such", "report_to must be one of"),
                                           ("trackio", "report_to trackio needs the package trackio: pip install trackio")])
def test_a_follower_that_is_not_here_is_2(name, message, words, tmp_path, capsys, monkeypatch):
    import lottery_nb.extras
    monkeypatch.setattr(lottery_nb.extras, "find_spec", lambda module: None)
    assert main([*words, "--report-to", name]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not (tmp_path/"runs").exists()
    assert "LOTTERY_NB_REPORT_TO" not in os.environ


def in_terminal(words, command=COMMAND, **settings):
    "What a command shows on a terminal of 100 columns"
    import pty
    main_end, end = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")} | {"TERM": "xterm-256color", "COLUMNS": "100"} | settings
    process = subprocess.Popen([command, *map(str, words)], stdout=end, stderr=end, stdin=end, env=environment)
    os.close(end)
    shown = b""
    while True:
        try: part = os.read(main_end, 4096)
        except OSError: break
        if not part: break
        shown += part
    assert process.wait() == 0
    os.close(main_end)
    return shown.decode()


@pytest.mark.skipif(os.name != "posix", reason="a pseudo-terminal")
def test_tables_are_ruled_in_a_terminal_and_plain_elsewhere(tmp_path):
    (tmp_path/"grid.yaml").write_text("task: mrpc\nseed: [0, 1]\n")
    words = ["status", tmp_path/"grid.yaml", "--runs", tmp_path/"runs"]
    ruled, grey, plain = in_terminal(words), in_terminal(words, NO_COLOR="1"), lottery(*words).stdout
    assert "──" in ruled and "\x1b[" in ruled and "mrpc" in ruled
    assert "──" in grey and not re.search(r"\x1b\[[0-9;]*3[0-7]", grey) and not re.search(r"\x1b\[[0-9;]*3[0-7]", in_terminal(["--help"], NO_COLOR="1"))
    for seed, score in ((0, .5), (1, .75)): finish(open_run(TicketSpec(task="mrpc", seed=seed), tmp_path/"runs"), task="mrpc", metric="accuracy", score=score, sparsity=.7, method="imp")
    listed = in_terminal(["results", "--runs", tmp_path/"runs"], NO_COLOR="1")
    assert "──" in listed and "0.7500" in listed and "──" not in lottery("results", "--runs", tmp_path/"runs").stdout
    assert "──" not in plain and "\x1b" not in plain and plain.splitlines()[1].split() == ["ticket", "mrpc", "imp", "0", "0", "0", "2"]


@pytest.mark.skipif(os.name != "posix", reason="a pseudo-terminal")
def test_a_sweep_in_a_terminal_says_every_run(tiny_model, tiny_data, tmp_path):
    (tmp_path/"grid.yaml").write_text(f"task: {tiny_data}\nmodel: {tiny_model}\nmethod: [omp, random]\nsparsity: 0.5\nmax_steps: 2\nmax_length: 16\n")
    shown = in_terminal(["sweep", tmp_path/"grid.yaml", "--runs", tmp_path/"runs"], warm.command("lottery-nb"))
    assert "[1/2, 0 failed, " in shown and "[2/2, 0 failed, " in shown and "━" in shown and "notebooks: " in shown
    assert "━" not in lottery("sweep", tmp_path/"grid.yaml", "--runs", tmp_path/"runs").stdout


def test_status_is_watched_until_nothing_is_left(tmp_path):
    (tmp_path/"grid.yaml").write_text("task: mrpc\nseed: [0, 1]\n")
    words = ["status", tmp_path/"grid.yaml", "--runs", tmp_path/"runs", "--watch"]
    watching = subprocess.Popen([COMMAND, *map(str, words)], stdout=subprocess.PIPE, text=True)
    counts = lambda: next(line.split()[1:] for line in iter(watching.stdout.readline, "") if line.startswith("all"))
    assert counts() == ["0", "0", "0", "2"]
    for seed, expected in ((0, ["1", "0", "0", "1"]), (1, ["2", "0", "0", "0"])):
        finish(open_run(TicketSpec(task="mrpc", seed=seed), tmp_path/"runs"), task="mrpc", metric="accuracy", score=.5, sparsity=.7)
        assert counts() == expected
    assert watching.communicate()[0] == "" and watching.returncode == 0
    assert main([*map(str, words), "--json"]) == 2


def test_nothing_to_export_is_2(tmp_path, capsys):
    assert main(["results", "--runs", str(tmp_path), "--parquet", str(tmp_path/"x.parquet")]) == 2
    assert "no finished runs" in capsys.readouterr().err and not (tmp_path/"x.parquet").exists()


def test_a_report_is_a_page(tmp_path, capsys):
    (tmp_path/"runs").mkdir()
    assert main(["report", "chen_2020", "--runs", str(tmp_path/"runs")]) == 0
    page = tmp_path/"runs"/"chen_2020.html"
    assert capsys.readouterr().out == f"page {page}\n" and "Lottery Ticket Hypothesis" in page.read_text(encoding="utf-8")
    assert main(["report", "chen_2021", "--runs", str(tmp_path/"runs")]) == 2 and "chen_2020" in capsys.readouterr().err
    assert main(["report", "chen_2020", "--out", str(tmp_path/"page.pdf")]) == 2 and "must be an .html file" in capsys.readouterr().err
