"""A kill between any two writes: the next command finds nothing half-made, sweeps what was left, and ends with the same bytes."""
import os
import sys
from pathlib import Path

import pytest
import torch

from lottery_nb.files import read_json, remove, seal, stage, verify, write_json
from lottery_nb.masks import Mask
from lottery_nb.spec import TicketSpec
from lottery_nb.store import finish, finished, finished_runs, run_folder, verify_run
from lottery_nb.sweep import Worker
from lottery_nb.tickets import Ticket
from lottery_nb.training import last_checkpoint, save_weights

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a copy of this process is killed")
SPEC = TicketSpec(task="rte", method="omp", sparsity=.5)
MASK = Mask({"bert.encoder.layer.0.attention.self.query.weight": torch.tensor([[True, False], [False, True]])})


def json_file(root):
    "A file is replaced twice"
    for number in (1, 2): write_json(root/"a"/"a.json", {"number": number, "text": "x" * 5000})


def sealed_stage(root):
    "A stage that goes on from what it has"
    def make(partial):
        for number in range(3):
            if not (partial/f"{number}.json").exists(): write_json(partial/f"{number}.json", list(range(1000)))
        save_weights(torch.nn.Linear(3, 2).requires_grad_(False).apply(lambda layer: (layer.weight.fill_(.5), layer.bias.zero_())), partial/"model.safetensors")
        (partial/"plain.txt").write_text("as other libraries write")
    stage(root/"stages"/"dense-1", make)


def ticket(root):
    "A mask, its card, its provenance"
    Ticket(MASK, {"method": "omp"}).save(root/"ticket")


def checkpoint(root):
    "A checkpoint counts once it is sealed; a torn one is passed over"
    if not (found := last_checkpoint(root)):
        (root/"checkpoint-1").mkdir(parents=True)
        write_json(root/"checkpoint-1"/"scheduler.json", {"step": 1})
        (root/"checkpoint-1"/"trainer_state.json").write_text("{}" * 100)
        seal(root/"checkpoint-1")
    assert last_checkpoint(root) == found or found is None


def thrown_away(root):
    "A folder is deleted, and made again"
    (root/"b").mkdir(parents=True, exist_ok=True)
    for number in range(3): write_json(root/"b"/f"{number}.json", number)
    remove(root/"b")
    for number in range(2): write_json(root/"b"/f"{number}.json", number)


def notebook(template, folder, values, kernel, progress, fresh):
    "What papermill and the cells of a ticket run write, in their order"
    times = {"end_time": None, "exception": None, "duration": None}
    written = lambda: (folder/"run.ipynb").write_text('{"metadata": {"papermill": ' + str(times).replace("'", '"').replace("None", "null") + '}, "cells": []}')
    written()
    Ticket(MASK, {"method": "omp"}).save(folder/"ticket")
    stage(folder/"retrained", lambda partial: write_json(partial/"scores.json", {"accuracy": .5}))
    finish(folder, metric="accuracy", score=.5, full_score=.6, sparsity=.5)
    times["end_time"] = "2026-01-01T00:00:00"
    written()


def run(root, force=False):
    "A run as a worker executes it"
    with Worker(root) as worker: worker.execute(SPEC, force)


def run_again(root):
    "The same run, which is finished, by force"
    run(root)
    run(root, force=True)


ROADS = [json_file, sealed_stage, ticket, checkpoint, thrown_away, run, run_again]


def killed(road, root, step, torn):
    "Take a road in a copy of this process that is killed before its `step`-th access to a file; `torn`: the file written last has only half its bytes. Whether it came to its end"
    if (pid := os.fork()) == 0:
        seen, last = 0, None

        def watch(event, arguments):
            nonlocal seen, last
            if event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod") or not str(arguments[0]).startswith(str(root)): return
            if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR): return
            seen += 1
            if seen == step:
                if torn and last and os.path.isfile(last): os.truncate(last, os.path.getsize(last) // 2)
                os._exit(9)
            if event == "open" and not str(arguments[0]).endswith(".lock"): last = arguments[0]

        sys.addaudithook(watch)
        try: road(root)
        except BaseException: os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 9)
    return code == 0


def contents(root): return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file() and path.suffix not in (".lock", ".txt")}


def left(root): return [path for path in root.rglob("*") if path.suffix in (".tmp", ".trash", ".partial") or path.name.startswith(".tmp")]


@pytest.mark.parametrize("road", ROADS, ids=lambda road: road.__name__)
@pytest.mark.parametrize("torn", [False, True], ids=["between writes", "within a write"])
def test_every_step_may_be_the_last(road, torn, tmp_path, monkeypatch):
    monkeypatch.setattr("lottery_nb.sweep.run_notebook", notebook)
    monkeypatch.setattr(Worker, "ready", lambda self: None)
    monkeypatch.setattr(os, "fsync", lambda file: None)   # the machine itself stays up here
    road(tmp_path/"whole")
    step, done = 0, False
    while not done:
        step += 3 if road is run_again else 1   # the longest, of which every part is another road's
        root = tmp_path/f"killed-{step}"
        done = killed(road, root, step, torn)
        if road in (run, run_again):
            known = finished_runs(root, pytest.fail)
            assert len(known) <= 1 and all(verify_run(run_folder(SPEC, root)) for _ in known)
        road(root)
        assert contents(root) == contents(tmp_path/"whole") and left(root) == [], step
        for sums in root.rglob("checksums.json"):
            verify(sums.parent)
            assert not any(Path(name).name.startswith(".") for name in read_json(sums))
        if road in (run, run_again): assert finished(run_folder(SPEC, root))
    POINTS.append(step)


POINTS = []


def test_there_were_many_points():
    "Runs after the others: at least a hundred steps were the last"
    if len(POINTS) < 2 * len(ROADS): pytest.skip("not all roads were taken here")
    assert sum(POINTS) >= 100
