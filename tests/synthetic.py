"Results tables made from grids without any training: scores follow from the specs, so that a page can be tried on a study of any size"
import os
import zlib
from dataclasses import asdict
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch

from lottery_nb.grid import read_grid
from lottery_nb.masks import Mask
from lottery_nb.store import flat_result
from lottery_nb.tables import ticket_runs
from lottery_nb.tasks import task_of
from lottery_nb.tickets import Ticket

GRIDS = Path(__file__).resolve().parent.parent/"grids"
LOSS = {"dense": 0, "imp": .1, "standard": .04, "tamt-mlm": .02, "tamt-kd": .02, "tamt-mlm+kd": .015, "omp": .06, "random": .3}   # of score, per unit of sparsity


def draw(*places) -> float:
    "A number in [-1, 1] that is always the same for the same places"
    return 2 * np.random.default_rng(zlib.crc32(repr(places).encode())).random() - 1


def ticket_result(spec) -> dict:
    "What a ticket run would report"
    task, moved = task_of(spec), spec.source not in ("", spec.task)
    full = .85 + .005 * draw(spec.task, spec.model, spec.seed)
    free = .55 + .15 * draw(spec.task) if spec.method == "imp" else 0   # up to here IMP loses nothing
    lost = LOSS.get(spec.method, .1) * max(0, spec.sparsity - free) + .004 * moved + (.1 if spec.start != "pretrained" else 0)
    if spec.max_train: full, lost = full - .05, lost + .01
    score = full - lost + .004 * draw(*asdict(spec).values()) - (.01 if spec.mask_at else 0)
    scores, full_scores = ({name: value - .02*at for at, name in enumerate(task.metrics)} for value in (score, full))
    if spec.task == "mnli":
        for part, value in ((scores, score), (full_scores, full)): part["accuracy_mm"] = value - .01
    return dict(task=spec.task, method=spec.method, metric=task.metric, seed=spec.seed, score=score, full_score=full, sparsity=spec.sparsity,
                scores=scores, full_scores=full_scores, majority=.5, learnt=True, mlm_loss=2 + 5*lost, kd_loss=.1 + lost,
                hours_full=.5, hours_find=2. + spec.sparsity, hours_retrain=.5)


def synthetic(grid: str, result=ticket_result) -> pd.DataFrame:
    "A results table, as `store.results` gives it, of every run of a grid"
    somewhere = {name: "somewhere" for name in ("LOTTERY_NB_MODEL", "LOTTERY_NB_TEXT", "LOTTERY_NB_DATA") if name not in os.environ}
    with patch.dict(os.environ, somewhere): specs = [spec for spec in read_grid(GRIDS/f"{grid}.yaml") if spec.template == "ticket"]
    return pd.DataFrame([flat_result({"schema": 1, "id": spec.id, "template": spec.template, "spec": asdict(spec)} | result(spec)) for spec in specs])


def tickets_of(table: pd.DataFrame, path: Path) -> dict[str, pd.DataFrame]:
    "The ticket runs of a table as pages take them, by model"
    table.to_csv(path, index=False)
    return {Path(model).name: rows for model, rows in ticket_runs(path).groupby("model", sort=False)}


def with_masks(runs: pd.DataFrame, needed: pd.Series, root: Path) -> pd.DataFrame:
    "The same runs, those that are needed with a folder that has a small ticket"
    folders = runs.folder.astype(object).copy()
    for at, run in runs[needed].iterrows():
        noise = torch.rand(400, generator=torch.Generator().manual_seed(zlib.crc32(f"{run.task} {run.method} {run.mask_seed}".encode())))
        Ticket(Mask({"w": noise >= run.asked_sparsity})).save(root/run.id/"ticket")
        folders[at] = str(root/run.id)
    return runs.assign(folder=folders)
