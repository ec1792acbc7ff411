"""Grids before they run: what is refused, what is planned, what is printed."""
import itertools
import json
import os
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import warm
from hypothesis import given, settings, strategies as st

from lottery_nb.baseline import length_of, tokenizer_here, training_size
from lottery_nb.cli import main, read_fields, run_command
from lottery_nb.files import BadInput
from lottery_nb.grid import expand, read_grid
from lottery_nb.language import ROWS, micro_task
from lottery_nb.plan import hours, pieces, plan, step_seconds
from lottery_nb.spec import READS, AttentionSpec, MagnitudeSpec, RunSpec, StructuredSpec, TicketSpec, make_spec
from lottery_nb.sweep import sweep
from lottery_nb.tasks import encode, get_task, load_data


def refused(grid):
    with pytest.raises(BadInput) as error: expand(grid)
    return str(error.value)


def test_everything_wrong_with_a_grid_is_said_at_once():
    said = refused(dict(grids=[
        dict(template="tiket"), dict(sparsty=.5, sed=1), dict(task="sst2", seed=[]), "sst2",
        dict(task=["sst3", "mrpc"], sparsity=2., learning_rate="2e-5"), dict(method="dense", sparsity=.5), dict(task="rte", seed=[3, 3]),
        dict(max_steps=10, epochs=3), dict(round_steps=10, round_epochs=1), dict(method="standard", rewind=.1)]))
    for part in ("did you mean 'ticket'", "has no field 'sparsty'", "has no field 'sed'", "the list of seed has no values", "a block must be a mapping", "task must be one of", "sparsity must be in",
                 "2.0e-5 a number", "method dense and sparsity 0.5", "run rte-imp-s70-r3", "max_steps 10 and epochs 3", "round_steps 10 and round_epochs 1", "method standard does not read rewind, got 0.1"):
        assert part in said, part
    assert said.startswith("the grid has 13 error(s), nothing was run")


@pytest.mark.parametrize("values", [dict(method=5), dict(method="tamt-mlm", model="bert-base-uncased", sparsity="half"), dict(task={"a": 1}), dict(seed=[[1]]), {1: 2}, dict(template=["ticket"])], ids=str)
def test_values_of_any_shape_are_bad_input_and_no_crash(values):
    assert "the grid has 1 error(s)" in refused(values)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from(["task", "seed", "sparsity", "epochs"]), st.lists(st.integers(0, 3), min_size=0, max_size=3), max_size=3))
def test_a_grid_is_the_product_of_its_lists_or_is_refused(lists):
    names = {"task": ["sst2", "mrpc", "rte", "cola"], "seed": [0, 1, 2, 3], "sparsity": [.1, .3, .5, .7], "epochs": [1, 2, 3, 5]}
    block = {name: [names[name][i] for i in picked] for name, picked in lists.items()}
    good = all(picked and len(set(picked)) == len(picked) for picked in lists.values())
    if not good:
        refused(block)
        return
    specs = expand(block)
    assert [tuple(getattr(spec, name) for name in block) for spec in specs] == list(itertools.product(*block.values()))
    assert len({spec.id for spec in specs}) == len(specs)


def test_two_spellings_of_one_run_are_a_duplicate():
    assert "asked for more than once (2 points" in refused(dict(task=["SST-2", "sst2"]))
    assert "asked for more than once" in refused(dict(task="mrpc", epochs=[None, 5]))   # 5 is the default of mrpc


def test_a_bad_grid_is_2_and_leaves_nothing(tmp_path, capsys):
    (tmp_path/"grid.yaml").write_text("template: ticket\nsparsty: [0.5, 0.7]\nseed: [0, 0]\n")
    for command in (["sweep"], ["sweep", "--dry-run"], ["status"]):
        assert main([*command, str(tmp_path/"grid.yaml"), "--runs", str(tmp_path/"runs")]) == 2
        assert "has no field 'sparsty' (did you mean 'sparsity'?)" in capsys.readouterr().err
    assert not (tmp_path/"runs").exists()


def test_keys_given_twice_are_named_with_their_lines(tmp_path):
    (tmp_path/"grid.yaml").write_text("grids:\n  - template: ticket\n    seed: 0\n    seed: 1\n  - {task: rte, task: mrpc}\n")
    with pytest.raises(BadInput, match=r"seed \(line 4\); task \(line 5\)"): read_grid(tmp_path/"grid.yaml")


def test_a_folder_is_no_grid(tmp_path, capsys):
    assert main(["sweep", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def taken(folder):
    "Optimizer steps that a training took, by its own history"
    return int(pd.read_parquet(folder/"history.parquet").step.max())


def test_the_plan_is_what_a_sweep_then_does(tiny_model, tiny_data, tmp_path, warm_python):
    "Stages and steps as counted beforehand, and as found in the run folder afterwards"
    common = dict(task=str(tiny_data), model=str(tiny_model), max_length=16, max_steps=5)
    specs = expand(dict(grids=[common | dict(method=["dense", "random"], sparsity=0, seed=[0, 1]),
                               common | dict(method="imp", sparsity=[.1, .3], rewind=[0, .4], round_steps=3), common | dict(method="standard", sparsity=.2),
                               common | dict(template="magnitude"), dict(common, max_steps=None) | dict(method="omp", sparsity=.5, epochs=2)]))
    table = plan(specs)
    assert all(isinstance(result, dict) for _, result in sweep(specs, tmp_path))
    stages = tmp_path/"stages"
    found = {"dense baseline": list(stages.glob("dense-*")), "retraining": [*tmp_path.glob("*/retrained"), *stages.glob("mask-*")], "IMP level": list(stages.glob("imp-*")), "rewind point": list(stages.glob("theta-*"))}
    for kind, folders in found.items():
        trained = [folder for folder in folders if (folder/"history.parquet").exists()]
        assert (len(folders), sum(map(taken, trained))) == tuple(table.loc[kind, ["shared", "steps_shared"]]), kind
    assert {p.name.split("-")[0] for p in stages.iterdir() if p.is_dir()} == {"dense", "imp", "mask", "mpruning", "theta"}


@pytest.mark.parametrize("architecture", ["micro", "micro-roberta"])
@pytest.mark.parametrize("task", ["sst2", "squad", "mlm"])
def test_sizes_of_the_micro_world(task, architecture):
    spec = RunSpec(task=task, model=architecture)
    features = encode(get_task(task), load_data(spec)["train"], tokenizer_here(architecture), spec.max_length)
    assert training_size(spec) == len(features)
    assert training_size(replace(spec, max_train=7)) == 7
    if task != "mlm": assert ROWS[task].train == len(micro_task(task)["train"])


def test_text_and_windows_on_this_machine_are_counted(tiny_model, tmp_path):
    (tmp_path/"text.txt").write_text("the film was good\n" * 400)   # of which 380 lines train, 4 tokens each
    spec = RunSpec(task="mlm", model=str(tiny_model), text=str(tmp_path/"text.txt"), max_length=10)
    assert training_size(spec) == 380*4//8
    assert length_of(replace(spec, batch_size=19, epochs=2)) == 20
    assert training_size(replace(spec, model="bert-base-uncased")) is None
    with pytest.raises(BadInput, match="no.txt does not exist"): training_size(replace(spec, text=str(tmp_path/"no.txt")))


def test_mask_trainings_are_shared_by_tasks_and_saved_steps():
    specs = [TicketSpec(task=task, method="tamt-kd", sparsity=.7, mask_steps=100, mask_seed=0, seed=seed, mask_at=at) for task in ("sst2", "rte") for seed in (0, 1) for at in (50, None)]
    assert plan(specs).loc["mask training"].tolist() == [8, 1, 800, 100, 0]
    assert plan([replace(specs[0], mask_rank="absolute"), *specs]).loc["mask training", "shared"] == 2


def test_super_survivors_need_the_full_models_of_all_seeds():
    kinds = [piece.kind for piece in pieces(StructuredSpec(task="rte", seed=1, super_seeds=3))]
    assert kinds.count("dense baseline") == 3 and kinds.count("retraining") == 3
    assert length_of(RunSpec(task="rte", epochs=16)) in [piece.steps for piece in pieces(StructuredSpec(task="rte", retrain_epochs=16))]
    assert [piece.kind for piece in pieces(AttentionSpec(task="rte"))] == ["dense baseline"]


def test_a_step_is_timed_without_pretraining_and_without_a_trace(tiny_model, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setenv("LOTTERY_NB_CACHE", str(tmp_path/"cache"))
    for spec in (RunSpec(task="stsb", batch_size=4), RunSpec(task="squad", model="micro-roberta", batch_size=2), RunSpec(task="mlm", batch_size=2), RunSpec(task=str(tiny_data), model=str(tiny_model), max_length=16)):
        assert step_seconds(spec, short=1, long=2) > 0
    assert step_seconds(RunSpec(model=str(tiny_model))) is None   # its data would come from the Hub
    assert list(tmp_path.iterdir()) == []


def test_hours_follow_from_the_step_time():
    specs = [TicketSpec(model="bert-base-uncased", task="mrpc", method="omp", sparsity=s) for s in (.5, .7)]
    assert hours(specs, 2.)["shared"] == pytest.approx(3 * 345 * 2 / 3600)
    assert hours(specs, 2.)["alone"] == pytest.approx(4 * 345 * 2 / 3600)
    assert hours(specs) == {"alone": None, "shared": None, "not_timed": ["bert-base-uncased"], "step_seconds": {}} | {"step_seconds": {"bert-base-uncased mrpc 32x128": None}}


def test_a_dry_run_writes_nothing_and_speaks_json(tiny_model, tiny_data, tmp_path):
    (tmp_path/"grid.yaml").write_text(f"task: {tiny_data}\nmodel: {tiny_model}\nmethod: [omp, random]\nsparsity: 0.5\nmax_steps: 4\nmax_length: 16\n")
    command = [warm.command("lottery-nb"), "sweep", "grid.yaml", "--dry-run"]
    environment = os.environ | {"LOTTERY_NB_CACHE": str(tmp_path/"cache"), "TMPDIR": str(tmp_path)}
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, cwd=tmp_path, env=environment)
    found = json.loads(done.stdout)
    assert (len(found["runs"]), found["steps_alone"], found["steps_shared"], found["steps_left"]) == (2, 16, 12, 12) and found["hours"]["shared"] > 0
    shown = subprocess.run([*command, "--step-time", "900"], capture_output=True, text=True, cwd=tmp_path, env=environment).stdout
    assert shown.startswith("2 runs, 0 finished; sharing saves 25 % of the training steps; at most 12 steps are left\n") and "reviews-omp" not in shown
    assert "reviews-omp" in subprocess.run([*command, "--step-time", "900", "--list"], capture_output=True, text=True, cwd=tmp_path, env=environment).stdout
    assert "3.0 h of training steps one after another, 4.0 h without sharing" in shown
    assert [p.name for p in tmp_path.iterdir()] == ["grid.yaml"]
    assert main(["sweep", str(tmp_path/"grid.yaml"), "--dry-run", "--step-time", "0"]) == 2


def same_run(spec, runs=None):
    "Whether the printed command asks for the same run"
    words = shlex.split(run_command(spec, runs))
    start = 5 if runs else 3
    assert words[:2] == ["lottery-nb", "run"] and (not runs or words[3:5] == ["--runs", runs])
    return make_spec(words[2], read_fields(words[2], words[start:])) == spec


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=12)


@settings(max_examples=60, deadline=None)
@given(TEXTS, TEXTS, st.integers(0, 10**6), st.sampled_from([None, 0., .1]), st.booleans(), st.floats(1e-7, 1.), st.sampled_from(["omp", "dense", "tamt-kd", "imp"]))
def test_printed_commands_give_the_same_run(text, folder, seed, rewind, head, rate, method):
    read = {name: value for name, value in dict(rewind=rewind, rewind_head=head, sparsity=.3).items() if name in READS[method]}
    assert same_run(TicketSpec(task="rte", text=text, data_dir=folder, seed=seed, learning_rate=rate, method=method, **read), runs=folder or None)


def test_every_grid_of_the_repository_prints_its_runs(capsys, grid_variables):
    for grid in sorted((Path(__file__).parent.parent/"grids").glob("*.yaml")): assert all(map(same_run, read_grid(grid)[::7]))
    assert same_run(MagnitudeSpec(iterations=10, bad="largest")) and same_run(AttentionSpec(token_types=False))
    assert main(["sweep", str(grid), "--print"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(read_grid(grid))


def test_a_printed_command_is_understood_by_the_command_line(tmp_path, capsys):
    spec = TicketSpec(task=str(tmp_path/"it's mine.csv"), method="standard", keep_model=True)
    assert main(shlex.split(run_command(spec, str(tmp_path/"all runs")))[1:] + ["--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["folder"] == str(tmp_path/"all runs"/spec.id)
