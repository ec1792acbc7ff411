"""The table of methods: one row each, nothing known twice, and a criterion of one's own is one function and one row."""
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pandas as pd
import pytest
import torch
import warm

import lottery_nb as lt
from lottery_nb.cli import main
from lottery_nb.files import BadInput, read_json
from lottery_nb.grid import expand
from lottery_nb.masks import Mask
from lottery_nb.methods import METHODS, find_ticket
from lottery_nb.plan import pieces, plan
from lottery_nb.scores import SCORES
from lottery_nb.spec import EVERY, READS, RunSpec, TicketSpec
from lottery_nb.tasks import get_task
from lottery_nb.tickets import write_mask


@pytest.fixture
def common(tiny_model, tiny_data, tmp_path):
    "A short run on the tiny model, with text for what needs it"
    (tmp_path/"text.txt").write_text("the film was good a meal was poor\n" * 400)
    return dict(task=str(tiny_data), model=str(tiny_model), text=str(tmp_path/"text.txt"), max_length=16, max_steps=5, batch_size=8, sparsity=.2, mask_max_length=16)


OWN = {"imp": dict(round_steps=3, rewind=.4), "standard": dict(round_steps=3), "early-bird": dict(round_steps=20, early_window=2, early_distance=.2)}   # fields that keep the trainings of a method short


def run_of(method, common):
    "A short run of a method"
    own = OWN.get(method, {}) | (dict(mask_steps=6, scope="matrix") if method.startswith("tamt-") else {})
    if method == "given":
        mask = find_ticket(TicketSpec(**common, method="omp")).mask
        own["mask"] = str(write_mask(Path(common["text"]).parent/"mine.safetensors", mask))
    return {name: value for name, value in common.items() if name != "sparsity" or "sparsity" in READS[method]} | own | {"method": method}


def test_names_and_fields_are_said_once():
    assert {name: row.reads for name, row in METHODS.items()} == READS
    specific = {field.name for field in fields(TicketSpec)} - {field.name for field in fields(RunSpec)}
    assert set(EVERY) | {name for reads in READS.values() for name in reads} == specific   # every field means something to somebody


@pytest.mark.parametrize("method", sorted(READS))
def test_a_field_that_a_method_does_not_read_is_refused(method):
    for name, value in dict(mask_steps=100, step=.2, source="mlm", rewind=.5, mask_seed=3, scope="matrix").items():
        needed = {"mask": "a.pt"} if method == "given" else {}
        if name in READS[method]: TicketSpec(method=method, **{name: value} | needed)
        else:
            with pytest.raises(BadInput, match=f"method {method.replace('+', '.')} does not read {name}, got"): TicketSpec(method=method, **{name: value} | needed)


def test_idle_fields_are_2_at_the_command_line_and_counted_in_a_grid(tmp_path, capsys):
    assert main(["run", "ticket", "--method", "omp", "--mask-steps", "100", "--runs", str(tmp_path/"runs")]) == 2
    assert "method omp does not read mask_steps, got 100" in capsys.readouterr().err
    with pytest.raises(BadInput, match=r"method random does not read step, got 0.2.*\(3 points; the first: method random, step 0.2, seed 0\)"):
        expand(dict(method="random", step=.2, seed=[0, 1, 2]))
    assert not (tmp_path/"runs").exists()


def trained(stage):
    "Optimizer steps that a stage took, as it noted them"
    if (stage/"steps.json").exists(): return read_json(stage/"steps.json")["steps"]
    return int(pd.read_parquet(stage/"history.parquet").step.max()) if (stage/"history.parquet").exists() else 0


def test_what_a_dry_run_announces_is_what_is_trained_stage_by_stage(common, tmp_path, capsys):
    points, runs = [run_of(method, common) for method in METHODS], tmp_path/"runs"
    specs = [TicketSpec(**point) for point in points]
    (tmp_path/"grid.yaml").write_text(json.dumps({"grids": points}))
    assert main(["sweep", str(tmp_path/"grid.yaml"), "--dry-run", "--json", "--step-time", "1"]) == 0
    announced = json.loads(capsys.readouterr().out)
    for spec in specs: lt.run(spec, runs)
    wanted = {piece.key: piece for spec in specs for piece in pieces(spec)}
    stages = {path.name.rsplit("-", 1)[1]: path for path in (runs/"stages").iterdir() if path.is_dir()}
    found = {key: runs/key/"retrained" if piece.kind == "retraining" else stages[key[:10]] for key, piece in wanted.items()}
    known = {key: piece.steps for key, piece in wanted.items() if piece.steps is not None}
    assert {key: trained(found[key]) for key in known} == known
    assert announced["steps_shared"] == sum(trained(found[key]) for key in known) == int(plan(specs).steps_shared.sum())
    assert {wanted[key].spec.task for key in wanted.keys() - known.keys()} == {common["task"]} and announced["unknown"] == 2   # the rounds of early-bird end by themselves
    assert all(0 < trained(found[key]) < 20 for key in wanted.keys() - known.keys())
    others = {path for path in stages.values() if trained(path)} - set(found.values())
    assert others == set()   # and nothing was trained that was not announced


@pytest.mark.parametrize("method", sorted(READS))
def test_a_ticket_says_the_method_that_made_it(method, common, tmp_path):
    ticket = find_ticket(TicketSpec(**run_of(method, common)), tmp_path/"runs")
    assert ticket.provenance["method"] == method
    assert ticket.mask.sparsity == pytest.approx(0 if method == "dense" else .2, abs=1e-3)


PLUGIN = '''
from lottery_nb.methods import add_method, one_shot
from lottery_nb.scores import SCORES

def smallest(weights):
    "The opposite of magnitude"
    return {name: -weight.detach().abs() for name, weight in weights.items()}

SCORES["smallest"] = smallest
add_method("smallest", one_shot("smallest", colour="#123456"))
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    "A criterion of the user's own, in a file"
    (tmp_path/"mine.py").write_text(PLUGIN)
    monkeypatch.setenv("LOTTERY_NB_PLUGINS", str(tmp_path/"mine.py"))
    yield tmp_path/"mine.py"
    for table in (METHODS, READS, SCORES): table.pop("smallest", None)


def test_a_criterion_of_ones_own_is_a_function_and_a_row(plugin, common, tmp_path, capsys, warm_python):
    "Through run, sweep, dry run, results, summary, figure and report without another edit"
    from lottery_nb.figures import score_curves
    from lottery_nb.tables import summary_table
    from lottery_nb.store import results
    runs = ["--runs", str(tmp_path/"runs")]
    block = common | {"sparsity": [.2, .5], "method": ["smallest", "omp"]}
    del block["mask_max_length"]
    (tmp_path/"grid.yaml").write_text(json.dumps(block))
    words = [word for name, value in common.items() if name != "mask_max_length" for word in (f"--{name.replace('_', '-')}", str(value))]
    assert main(["sweep", str(tmp_path/"grid.yaml"), "--dry-run", "--list", *runs]) == 0 and "smallest-s20" in capsys.readouterr().out
    assert main(["run", "ticket", *words, "--method", "smallest", *runs]) == 0
    assert main(["sweep", str(tmp_path/"grid.yaml"), *runs]) == 0
    assert main(["results", "--summary", "--figure", str(tmp_path/"curve.svg"), *runs]) == 0
    assert "smallest" in capsys.readouterr().out and "smallest" in (tmp_path/"curve.svg").read_text()
    table = results(tmp_path/"runs")
    assert sorted(table.method) == ["omp", "omp", "smallest", "smallest"]
    curves = dict(zip(*reversed(score_curves(table)[0].get_legend_handles_labels())))
    assert curves["smallest"].lines[0].get_color() == "#123456" and "smallest" in set(summary_table(table).method)
    kept = lt.Ticket.load(tmp_path/"runs"/table[table.method == "smallest"].id.iloc[0]/"ticket").mask
    weights = lt.prunable(lt.theta0(lt.RunSpec(task=common["task"], model=common["model"])))
    magnitudes = torch.cat([weights[name].detach().abs().flatten() for name in kept])
    alive = torch.cat([bits.flatten() for bits in kept.values()])
    assert magnitudes[alive].max() <= magnitudes[~alive].min()


def test_a_process_that_only_reads_results_knows_the_row_too(plugin, common, tmp_path, monkeypatch):
    "Its colour in a figure of `results`, its line in the page of a report: both are drawn by a process that has made no spec; names are of the current folder"
    lt.run(TicketSpec(**common, method="smallest"), tmp_path/"runs")
    monkeypatch.setenv("LOTTERY_NB_PLUGINS", "mine.py")
    monkeypatch.delenv("LOTTERY_NB_RUNS", raising=False)
    for words in ("results --figure curve.svg", "report liu_2022"):
        done = subprocess.run([warm.command("lottery-nb"), *words.split()], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "#123456" in (tmp_path/"curve.svg").read_text()
    assert "<th>smallest</th>" in (tmp_path/"runs"/"liu_2022.html").read_text()   # a row of the average scores


def test_a_plugin_that_is_no_good_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LOTTERY_NB_PLUGINS", "no_such_module_anywhere")
    assert main(["run", "ticket", "--method", "mine", "--runs", str(tmp_path/"runs")]) == 2
    assert "LOTTERY_NB_PLUGINS names no_such_module_anywhere, which cannot be imported" in capsys.readouterr().err


def test_the_face_is_lazy_and_complete():
    "`import lottery_nb` costs nothing; every name of the face is there"
    code = "import sys, lottery_nb; print([m for m in ('torch', 'numpy', 'pandas', 'lottery_nb.files') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    assert all(getattr(lt, name) is not None for name in lt.__all__) and set(lt.__all__) <= set(dir(lt))
    modules = {path.stem for path in Path(lt.__file__).parent.glob("*.py")}
    assert modules.isdisjoint(lt.__all__)   # else `lt.NAME` would be the module once that is imported
    with pytest.raises(AttributeError, match="no attribute 'prunabel'"): getattr(lt, "prunabel")   # noqa: B009


def test_the_face_does_the_main_job(tiny_model):
    model = lt.load_model(str(tiny_model), get_task("sst2"), seed=0)
    mask = lt.topk_mask(lt.magnitude(lt.prunable(model)), .7)
    assert isinstance(mask, Mask) and mask.sparsity == pytest.approx(.7, abs=1e-3)


def test_a_run_here_is_the_run_of_the_template(common, tmp_path, warm_python):
    "Same ticket, same scores, same stages, with a notebook or without"
    from lottery_nb.sweep import Worker
    spec = TicketSpec(**run_of("imp", common))
    here = lt.run(spec, tmp_path/"here")
    with Worker(tmp_path/"there") as worker: there = worker.execute(spec)
    assert {k: v for k, v in here.items() if k != "files"}.items() >= {k: there[k] for k in ("id", "score", "full_score", "sparsity", "mlm_loss", "kd_loss")}.items()
    stages = [{path.name for path in (tmp_path/place/"stages").iterdir() if path.is_dir()} for place in ("here", "there")]
    assert stages[0] == stages[1]
    assert here["files"] == there["files"]
