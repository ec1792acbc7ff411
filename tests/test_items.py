"""The 55 tables and figures of the three papers: each comes out whole from a study of its grid, full size and micro, ours beside the paper's"""
import importlib
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from synthetic import folder_of, synthetic, tickets_of, with_masks

from lottery_nb.attention_page import page_attention
from lottery_nb.files import package_file
from lottery_nb.prasanna import page_gates
from lottery_nb.report import Section, item_anchor
from lottery_nb.verdicts import Verdict

ITEMS = pd.read_csv(package_file("items.csv"), keep_default_na=False)
SIDES = [(row.paper, row.item, row.function, grid) for row in ITEMS.itertuples() for grid in (row.grid, row.micro) if row.function]


def test_the_55():
    assert len(ITEMS) == 55 and not ITEMS.duplicated(["paper", "item"]).any()
    assert ITEMS.paper.value_counts().to_dict() == {"prasanna_2020": 22, "liu_2022": 19, "chen_2020": 14}
    assert ITEMS.shows.ne("").all()


@lru_cache(None)
def chen_runs(grid):
    "Chen's page takes ticket runs by model; its Figure 10 needs masks"
    root = Path(mkdtemp())
    found = tickets_of(synthetic(grid), root/"table.csv")
    need = lambda rows: rows.method.eq("imp") & np.isclose(rows.asked_sparsity, .7) & rows.own & rows.seed.eq(0) & rows.start.eq("pretrained")
    return ({model: with_masks(rows, need(rows), root) for model, rows in found.items()},)


@lru_cache(None)
def liu_runs(grid):
    "Liu's page takes ticket runs by model; its Figures 8 and 17 need masks, those of one seed along the training too"
    root = Path(mkdtemp())
    found = tickets_of(synthetic(grid), root/"table.csv")
    need = lambda rows: rows.seed.eq(0) & rows.method.ne("random") & rows.max_train.isna() & rows.task.eq("sst2") & rows.asked_sparsity.isin([.6, .7, .8])
    return ({model: with_masks(rows, need(rows), root) for model, rows in found.items()},)


@lru_cache(None)
def prasanna_runs(grid):
    "Prasanna's page takes the runs of a folder: most of its figures need gates"
    return (page_gates(str(folder_of(grid, Path(mkdtemp())))),)


TICKETS = {"attention_2020": "prasanna_2020", "micro_attention": "prasanna_2020_micro"}   # grid → the one that its tickets are runs of


@lru_cache(None)
def attention_runs(grid):
    "The page on attention takes results, and asks their tickets whose survivors they are"
    root = folder_of(TICKETS[grid], Path(mkdtemp()))
    return (page_attention(str(folder_of(grid, root, ("attention",)))),)


RUNS = {"chen": chen_runs, "liu": liu_runs, "prasanna": prasanna_runs, "attention_page": attention_runs}   # module of a page → what its functions take, from a grid


@lru_cache(None)
def section(function, grid):
    module, name = function.split(".")
    return getattr(importlib.import_module(f"lottery_nb.{module}"), name)(*RUNS[module](grid))


@lru_cache(None)
def words(function, grid):
    "What a section says on its page, beside its pictures"
    return section(function, grid)._repr_html_().lower().split("base64")[0]


def whole(part):
    "A figure with something drawn, or a table with numbers"
    if isinstance(part, Figure): return any(ax.has_data() for ax in part.axes)
    return isinstance(part, pd.DataFrame) and len(part) > 0 and part.notna().to_numpy().any()


@pytest.mark.parametrize("paper, item, function, grid", SIDES)
def test_every_item_comes_out_whole(paper, item, function, grid):
    "Ours is there, as a figure or a table; the paper's side is said to be absent where it has no numbers"
    made = section(function, grid)
    assert isinstance(made, Section)
    ours = {caption: part for caption, part in made.shown.items() if item_anchor(caption) == item_anchor(item) and "the paper" not in caption}
    assert ours and all(map(whole, ours.values())), f"{item}: {list(made.shown)}"
    assert "nan" not in words(function, grid).replace("finance", "")


@pytest.mark.parametrize("function, grid", sorted({(function, grid) for _, _, function, grid in SIDES}))
def test_claims_are_judged_on_pairs(function, grid):
    "Every verdict of a full study rests on pairs, several seeds and at least one task, and says so in its sentence"
    for verdict in section(function, grid).verdicts:
        assert isinstance(verdict, Verdict) and verdict.pairs > 0, verdict
        assert verdict.says in ("holds", "does not hold", "no evidence") and (verdict.seeds > 1 or verdict.says == "no evidence")
