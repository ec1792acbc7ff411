"""The papers' own numbers: shape, uniqueness, and what the papers' sentences say about them."""
import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parent.parent
PAPERS = ("chen_2020", "liu_2022", "prasanna_2020")
COLUMNS = ["paper", "table", "row", "column", "mean", "std", "note"]
FULL, IMP, MLM = "Full BERT_BASE", "f(x; m_IMP ⊙ θ0)", "f(x; m_IMP^MLM ⊙ θ0)"
MARGIN = "targets at least as high as their own ticket"


def numbers(paper): return pd.read_csv(ROOT/"lottery_nb"/"data"/f"{paper}.csv", dtype={"note": str}, keep_default_na=False, na_values={"mean": [""], "std": [""]})


def wide(paper, table, value="mean"):
    rows = numbers(paper).query("table == @table")
    return rows.pivot(index="row", columns="column", values=value).loc[rows.row.unique(), rows.column.unique()]


@pytest.mark.parametrize("paper", PAPERS)
def test_columns_and_types(paper):
    table = numbers(paper)
    assert list(table.columns) == COLUMNS and set(table.paper) == {paper}
    assert table[["mean", "std"]].dtypes.eq(float).all()
    assert (table["mean"].notna() | table.note.ne("")).all()
    assert not table[["table", "row", "column"]].eq("").any(axis=None)


@pytest.mark.parametrize("paper", PAPERS)
def test_one_number_a_cell(paper): assert not numbers(paper).duplicated(["table", "row", "column"]).any()


@pytest.mark.parametrize("paper, table, shape, cells", [
    ("chen_2020", "Table 2", (6, 11), 66), ("chen_2020", "Figure 2", (12, 12), 144), ("chen_2020", "Table 4", (6, 11), 66), ("chen_2020", "Table 5", (8, 11), 83),
    ("chen_2020", "Table 6", (3, 8), 24), ("chen_2020", "Table 7", (4, 10), 40), ("chen_2020", "Table 8", (7, 3), 9),
    ("liu_2022", "Table 2", (2, 8), 16), ("liu_2022", "Table 3", (2, 3), 6),
    ("prasanna_2020", "Table 2", (7, 10), 70), ("prasanna_2020", "Table 3", (20, 9), 180), ("prasanna_2020", "Figure 16", (4, 10), 40)])
def test_every_cell_of_the_tables(paper, table, shape, cells):
    "Chen et al.'s Table 5 has no HuggingFace, median or best value for MLM; in Table 8 each row but the last has one task"
    found = wide(paper, table)
    assert found.shape == shape and found.notna().sum(axis=None) == cells


def test_table_1_of_liu_has_words_in_its_notes():
    notes, means = wide("liu_2022", "Table 1", "note"), wide("liu_2022", "Table 1")
    assert notes.shape == (9, 11) and set(notes.loc["Optimizer"]) == {"AdamW"} and notes.at["Eval Metric", "CoLA"] == "Matthew's Corr"
    assert means.at["Lr (linear decay)", "TAMT-KD"] == 2e-5 and means.at["# Train Samples", "IMP-MLM"] == 103e6


def test_chen_sentences_on_the_strict_criterion():
    "Appendix A: which sparsities shrink when a ticket must match or exceed; 'MNLI and WNLI are unchanged'"
    loose, strict = wide("chen_2020", "Table 5").loc["Sparsity"], wide("chen_2020", "Table 4").loc["Sparsity Level"].rename({"SQuAD v1.1": "SQuAD"})
    said = {"QQP": (90, 70), "STS-B": (50, 40), "QNLI": (70, 50), "MRPC": (50, 40), "RTE": (60, 50), "SST-2": (60, 50), "CoLA": (50, 40), "SQuAD": (40, 20), "MLM": (70, 50)}
    assert {task: (loose[task], strict[task]) for task in loose.index if loose[task] != strict[task]} == said


def test_every_ticket_of_table_5_wins_and_of_table_4_matches():
    loose, spread, strict = wide("chen_2020", "Table 5"), wide("chen_2020", "Table 5", "std"), wide("chen_2020", "Table 4")
    name = f"{IMP} (mean ± stddev)"
    assert (loose.loc[name] + spread.loc[name] >= loose.loc[f"{FULL} (mean ± stddev)"] - 1e-9).all()
    assert (strict.loc[IMP] >= strict.loc[FULL]).all()


def test_chen_sentences_on_universality():
    "Appendix B: the MLM ticket wins on five of ten; the gaps on MRPC and CoLA, after one standard deviation, are 1.6 and 2.6"
    mean, std = wide("chen_2020", "Table 7"), wide("chen_2020", "Table 7", "std")
    gap = (mean.loc[FULL] - mean.loc[MLM] - std.loc[MLM]).round(1)
    assert (gap <= 0).sum() == 5 and gap["MRPC"] == 1.6 and gap["CoLA"] == 2.6


def test_right_margin_of_figure_2_is_the_count_of_its_cells():
    "As printed it leaves the source itself out; 'Pruning θ0' ties with SQuAD's own ticket to the last printed digit, and is drawn light"
    table = wide("chen_2020", "Figure 2")
    cells, margin = table.drop(columns=MARGIN), table[MARGIN]
    own = pd.Series({c: next(cells.at[r, c] for r in cells.index if r.removeprefix("(IMP) ").startswith(c + " (")) for c in cells})
    count = (cells >= own).sum(axis=1)
    count -= [any(r.removeprefix("(IMP) ").startswith(c + " (") for c in cells) for r in cells.index]
    assert (count - margin).to_dict() == {r: int(r.startswith("Pruning")) for r in cells.index}


def test_rebuttal_agrees_with_the_paper():
    "The revised Table 2 is the paper's; its 'best' row differs from Table 5 in two tasks"
    revised, table5 = wide("chen_2020", "Rebuttal, revised Table 2"), wide("chen_2020", "Table 5")
    assert revised.loc[f"{IMP} (mean ± stddev)"].equals(table5.loc[f"{IMP} (mean ± stddev)"])
    best = revised.loc[f"{FULL} (Best)"] - table5.loc[f"{FULL} (best)"]
    assert set(best.index[best.abs() > 1e-9]) == {"WNLI", "SQuAD"}
    assert wide("chen_2020", "Table 2").loc[IMP].equals(revised.loc[f"{IMP} (mean ± stddev)"])


def test_liu_sentences_on_iterations():
    "Appendix B.2: ten points every 2,792 iterations, the first at iteration 0; TAMT's budgets are IMP's, rounded to 1,000 (3,000 at least)"
    steps = wide("liu_2022", "Table 2")
    share = np.array([float(c.rstrip("%")) for c in steps]) / 10 - 1
    assert np.abs(steps.loc["IMP"] - 2792*share).max() <= 5.5
    assert (steps.loc["TAMT"] == (steps.loc["IMP"] / 1000).round() * 1000).all()


def test_times_of_table_3():
    times = wide("liu_2022", "Table 3")
    assert times.at["BERT_BASE", "IMP"] == 4*3600 + 6*60 + 26 and times.min(axis=None) == times.at["BERT_BASE", "TAMT-MLM"]


@pytest.mark.parametrize("table, average, digits, other", [
    ("Table 2", "Average", 2, {"CBOW": (.61, .657), "'Bad' subnetwork (m-pruning)": (.51, .529)}), ("Figure 16", "Avg", 3, {})])
def test_printed_averages_reproduce(table, average, digits, other):
    "Within one unit of the last printed digit of the cells, but for two rows of Table 2, whose averages are not those of their cells"
    cells = wide("prasanna_2020", table)
    found = cells.drop(columns=average).mean(axis=1)
    off = (found - cells[average]).abs() > 10.0**-digits
    assert {row: (cells.at[row, average], round(found[row], 3)) for row in cells.index if off[row]} == other


def test_prasanna_sentence_on_bad_tickets():
    "Section 4.3 has the bad m-pruned ticket at least 5 points behind the s-pruned one on 6 of 9 tasks; the printed cells give 5"
    rows = wide("prasanna_2020", "Table 2").drop(columns="Average")
    behind = (rows.loc["'Bad' subnetwork (s-pruning)"] - rows.loc["'Bad' subnetwork (m-pruning)"]).round(2)
    assert (behind >= .05).sum() == 5 and (behind >= .04).sum() == 8


HEATMAPS = {"7": "QNLI", "8": "RTE", "9": "MRPC", "10": "QQP", "11": "SST-2", "13": "STS-B", "14": "WNLI"}


@pytest.mark.parametrize("figure", HEATMAPS)
def test_heatmaps(figure):
    "At most 144 cells a panel; m-pruning's cells are shares that hardly differ between tasks once their mean is taken off"
    weights, heads = wide("prasanna_2020", f"Figure {figure}a"), wide("prasanna_2020", f"Figure {figure}b")
    assert 139 <= weights.notna().sum(axis=None) <= 144 and heads.notna().sum(axis=None) <= 144
    other = wide("prasanna_2020", "Figure 7a")
    both = pd.concat([weights.stack(), other.stack()], axis=1).dropna()
    assert both.corr().iloc[0, 1] > .97
    survived = heads.stack().dropna() * 5
    assert np.allclose(survived, survived.round())


@pytest.mark.parametrize("figure", HEATMAPS)
def test_heatmaps_are_the_published_masks(figure, assets):
    "Share of five seeds in which a head survived, computed from the authors' masks"
    tasks = json.loads(gzip.decompress((assets/"prasanna2020"/"masks.json.gz").read_bytes()))["heads_mlps"]
    seeds = next(tasks[t] for t in tasks if t.upper() == HEATMAPS[figure])
    kept = np.array([seed["head_mask"] for seed in seeds.values()])
    for value, oracle in (("mean", kept.mean(0)), ("std", kept.std(0, ddof=1))):
        cells = wide("prasanna_2020", f"Figure {figure}b", value)
        for (layer, head), number in cells.stack().dropna().items(): assert abs(oracle[int(layer[6:]), int(head[5:])] - number) < .006
