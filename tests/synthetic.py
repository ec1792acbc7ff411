"Results tables made from grids without any training: scores follow from the specs, so that a page can be tried on a study of any size"
import os
import zlib
from dataclasses import asdict
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch

from lottery_nb.files import write_json
from lottery_nb.gates import Gates
from lottery_nb.grid import read_grid
from lottery_nb.masks import Mask
from lottery_nb.patterns import CLASSES
from lottery_nb.prasanna import page_gates
from lottery_nb.store import flat_result
from lottery_nb.structured import search_folder
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


def kept_at(spec) -> Gates:
    "Gates that hang on task and seed, more of them where less is pruned; super-survivors are what five seeds keep"
    layers, heads = (4, 4) if spec.model == "micro" else (12, 12)
    noise = lambda seed: np.random.default_rng(zlib.crc32(f"{spec.task} {seed}".encode())).random((layers, heads + 1)) < .7
    kept = np.logical_and.reduce([noise(seed) for seed in range(getattr(spec, "super_seeds", 0))]) if getattr(spec, "super_seeds", 0) else noise(spec.seed)
    if getattr(spec, "prune", "") == "heads": kept[:, -1] = True
    if getattr(spec, "prune", "") == "mlps": kept[:, :-1] = True
    return Gates(kept[:, :-1], kept[:, -1])


def gates_result(spec) -> dict:
    "What a run of s- or m-pruning would report"
    task, structured = task_of(spec), spec.template == "structured"
    full = .85 + .005 * draw(spec.task, spec.model, spec.seed)
    lost = {"good": .02, "random": .06 if structured else .2, "bad": .1 if structured else .3}
    more = .2 * (getattr(spec, "start", "pretrained") == "reinit") + .03 * bool(getattr(spec, "super_seeds", 0))
    kinds = {f"{kind}_{what}": full - value - more - .1 * (what == "pruned") + .01 * draw(kind, what, *asdict(spec).values()) for kind, value in lost.items() for what in ("pruned", "retrained")}
    gates = kept_at(spec)
    sizes = {f"{kind}_size": float(np.mean([*gates.heads.ravel(), *gates.mlps])) if structured else .45 for kind in lost}
    parts = {"gates": {"good": gates.to_json()}} if structured else {"head_shares": (.4 + .1*gates.heads).tolist(), "mlp_shares": (.4 + .1*gates.mlps).tolist()}
    return dict(task=spec.task, seed=spec.seed, method="s-pruning" if structured else "m-pruning", metric=task.metric, score=kinds["good_retrained"], full_score=full,
                majority=.5, learnt=True, sparsity=1 - sizes["good_size"], data={"rows": {"train": 2000, "dev": 800}}) | kinds | sizes | parts


def attention_of(spec) -> dict:
    "What an attention run would report: survivors are a little less heterogeneous"
    def row(*place):
        raw = np.array([3., 3, 2, 1, 2 - .5*("surviving" in place)]) + [.2 * draw(spec.task, spec.seed, spec.blocks, *place, name) for name in CLASSES]
        return dict(zip(CLASSES, (raw / raw.sum()).tolist()))
    places = [(heads, model, kind) for heads in ("all", "surviving") for model in ("pre-trained", "fine-tuned") for kind in ("raw", "norm")]
    found = {kind: dict(pearson=.1 * draw(spec.task, spec.seed, kind), low=-.2, high=.2, p=.5) for kind in ("raw", "norm")}
    return dict(task=spec.task, texts=spec.texts, shares={" ".join(place): row(*place) for place in places}, correlations=found)


def folder_of(grid: str, root: Path, templates=("structured", "magnitude"), tasks=()) -> Path:
    "A folder of runs of a grid as pages read it, and the importance that each search of its paper's procedure would have measured"
    made = {"structured": gates_result, "magnitude": gates_result, "attention": attention_of}
    for spec in read_grid(GRIDS/f"{grid}.yaml"):
        if spec.template not in templates or (tasks and spec.task not in tasks): continue
        write_json(root/spec.id/"result.json", {"schema": 1, "id": spec.id, "template": spec.template, "spec": asdict(spec)} | made[spec.template](spec))
        if spec.template == "structured" and not (place := search_folder(spec, root)).exists():
            heads, mlps = kept_at(spec)
            importance = {"1" * (heads.size + len(mlps)): [np.linspace(0, 1, heads.size).reshape(heads.shape).tolist(), np.linspace(0, 1, len(mlps)).tolist()]}
            write_json(place/"importance.json", importance)
    return root


def synthetic(grid: str, result=ticket_result) -> pd.DataFrame:
    "A results table, as `store.results` gives it, of every run of a grid"
    somewhere = {name: "somewhere" for name in ("LOTTERY_NB_MODEL", "LOTTERY_NB_TEXT", "LOTTERY_NB_DATA") if name not in os.environ}
    with patch.dict(os.environ, somewhere): specs = [spec for spec in read_grid(GRIDS/f"{grid}.yaml") if spec.template == "ticket"]
    return pd.DataFrame([flat_result({"schema": 1, "id": spec.id, "template": spec.template, "spec": asdict(spec)} | result(spec)) for spec in specs])


def gates_of(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    "The structured and magnitude runs of a table as their page takes them"
    table.to_csv(path, index=False)
    return page_gates(str(path))


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
