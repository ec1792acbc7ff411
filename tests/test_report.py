"""Reports: tables from run folders, sentences from numbers, and pages from notebooks."""
import base64
import io
import itertools
import re
import shutil
import types
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb
from nbformat import v4
from PIL import Image
from papermill.exceptions import PapermillExecutionError
from scipy.stats import rankdata
from synthetic import folder_of

from lottery_nb import attention_page, chen, figures, liu, prasanna, report, tables
from lottery_nb.cli import main
from lottery_nb.compare import transfer_to_own
from lottery_nb.files import BadInput, write_json
from lottery_nb.gates import Gates
from lottery_nb.masks import Mask
from lottery_nb.methods import METHODS
from lottery_nb.patterns import CLASSES
from lottery_nb.report import finding, render, verdict
from lottery_nb.spec import READS, AttentionSpec, MagnitudeSpec, StructuredSpec, TicketSpec
from lottery_nb.store import finish, open_run, read_result, results
from lottery_nb.tables import averages, chen_table, chosen, gaps, paper_table, rank_correlation, rewinding, ticket_runs, transfer_matrix, worlds
from lottery_nb.tickets import Ticket

pytestmark = pytest.mark.usefixtures("warm_python")
LOSS = {"dense": 0, "imp": .01, "standard": .02, "tamt-mlm": .002, "tamt-kd": .005, "omp": .1, "random": .5}   # of score, per unit of sparsity
WEIGHT = {"sst2": 1, "mrpc": 2, "mlm": .5}
METRICS = {"sst2": ("accuracy",), "mrpc": ("accuracy", "f1"), "mlm": ("accuracy",)}


def write(root, **values):
    "One finished run: its scores follow from its spec"
    spec = TicketSpec(max_steps=4, **values)
    folder = open_run(spec, root)
    loss = LOSS[spec.method] * WEIGHT[spec.task] * (2 if spec.source not in ("", spec.task, "mlm") else 1) + (.4 if spec.start != "pretrained" else 0)
    full, ticket = .9 + .01*spec.seed, .905 - loss*spec.sparsity + .01*spec.seed - (.02 if spec.mask_init == "random" else 0) - (.01 if spec.mask_at else 0)
    scores = {name: ticket - .1*i for i, name in enumerate(METRICS[spec.task])}
    if spec.method != "dense":
        mask = torch.rand(400, generator=torch.Generator().manual_seed(len(spec.method))) >= spec.sparsity
        Ticket(Mask({"w": mask})).save(folder/"ticket")
    finish(folder, task=spec.task, method=spec.method, seed=spec.seed, metric=METRICS[spec.task][0], score=ticket, full_score=full, sparsity=spec.sparsity, scores=scores,
           full_scores={name: full - .1*i for i, name in enumerate(scores)}, mlm_loss=2 + 3*loss + .1*spec.sparsity, kd_loss=.1 + loss)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A small study of both papers' shapes: two tasks and MLM, two seeds, two sparsities"
    root = tmp_path_factory.mktemp("study")/"runs"
    for task in METRICS:
        for seed in range(2):
            write(root, task=task, method="dense", seed=seed)
            for sparsity in (.5, .7):
                for method in ("imp", "omp", "random", "tamt-mlm", "tamt-kd"): write(root, task=task, method=method, sparsity=sparsity, seed=seed)
                for source in METRICS: source == task or write(root, task=task, method="imp", source=source, sparsity=sparsity, seed=seed)
                write(root, task=task, method="imp", start="reinit", sparsity=sparsity, seed=seed)
    write(root, task="sst2", method="standard", source="mlm", sparsity=.7)
    for task in ("sst2", "mrpc"):
        write(root, task=task, method="tamt-mlm", sparsity=.7, mask_at=60)
        write(root, task=task, method="tamt-mlm", sparsity=.7, mask_init="random")
    finish(open_run(MagnitudeSpec(), root), task="sst2", method="m-pruning", metric="accuracy", score=.1)
    return root


@pytest.fixture(scope="module")
def gates_folder(tmp_path_factory):
    "Two tasks and seeds of s- and m-pruning: good .9, random .8, bad .6 once retrained"
    root = tmp_path_factory.mktemp("gates")/"runs"
    for task in ("sst2", "mrpc"):
        for seed in range(2):
            gates = Gates(np.arange(8).reshape(2, 4) != seed, np.array([True, seed == 0]))
            scores = {f"{kind}_{what}": value for kind, value in (("good", .9), ("random", .8), ("bad", .6)) for what in ("size", "pruned", "retrained")}
            for spec, method in ((StructuredSpec(task=task, seed=seed), "s-pruning"), (MagnitudeSpec(task=task, seed=seed), "m-pruning")):
                finish(open_run(spec, root), task=task, seed=seed, method=method, metric="accuracy", score=.9, full_score=.9, majority=.5, gates={"good": gates.to_json()}, head_shares=(gates.heads * .5).tolist(), mlp_shares=[.5, .4], **scores)
    return root


@pytest.fixture(scope="module")
def runs(folder): return worlds(folder)["micro"]


def test_only_ticket_runs_are_read_and_sources_named(folder, runs):
    assert set(runs.template) == {"ticket"} and len(runs) == len(list(folder.glob("*/result.json"))) - 1
    assert runs.own.sum() == (runs.source == runs.task).sum() and set(runs.source) == set(METRICS)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_saved_table_serves_as_well_as_the_folder(runs, tmp_path, kind):
    getattr(runs, f"to_{kind}")(tmp_path/f"runs.{kind}", index=False)
    again = worlds(tmp_path/f"runs.{kind}")["micro"]
    pd.testing.assert_frame_equal(chen_table(again), chen_table(runs))
    assert set(again.folder) == {""}


def test_the_environment_may_name_a_table_too(runs, tmp_path, monkeypatch):
    runs.to_csv(tmp_path/"runs.csv", index=False)
    monkeypatch.setenv("LOTTERY_NB_RUNS", str(tmp_path/"runs.csv"))
    assert len(worlds(None)["micro"]) == len(runs)


def test_an_empty_place_has_columns_and_no_rows(tmp_path):
    table = ticket_runs(tmp_path)
    assert len(table) == 0 and {"task", "source", "own", "mlm_loss", "folder"} <= set(table)
    assert len(averages(table)) == 0 and len(rank_correlation(table)) == 0 and gaps(table) == [] and len(chen_table(table)) == 0 and len(rewinding(table, "mlm")) == 0


def test_models_never_meet(folder, runs, tmp_path):
    runs.assign(model="some/where/other-bert").to_csv(tmp_path/"other.csv", index=False)
    found = worlds(folder, "", tmp_path/"other.csv")
    assert list(found) == ["micro", "other-bert"] and len(found["micro"]) == len(found["other-bert"])


@pytest.mark.parametrize("criterion", ["std_sub", "std_full", "strict"])
def test_table_2_by_brute_force(runs, criterion):
    table = chen_table(runs, criterion)
    for task in METRICS:
        full = [.9, .91]
        wins = {}
        for s in (.5, .7):
            scores = [.905 - LOSS["imp"]*WEIGHT[task]*s + .01*seed for seed in range(2)]
            slack = {"strict": 0, "std_sub": np.std(scores, ddof=1), "std_full": np.std(full, ddof=1)}[criterion]
            if np.mean(scores) >= np.mean(full) - slack - 1e-9: wins[s] = scores
        assert table.loc[("full", "mean"), task] == pytest.approx(90.5)
        if not wins: assert table.loc[[("sparsity", "%"), ("imp", "mean")], task].isna().all(); continue
        best = max(wins)
        assert table.loc[("sparsity", "%"), task] == pytest.approx(100*best)
        for name, f in (("mean", np.mean), ("median", np.median), ("best", max), ("std", lambda v: np.std(v, ddof=1))):
            assert table.loc[("imp", name), task] == pytest.approx(100*f(wins[best]))
        assert table.loc[("reinit", "mean"), task] == pytest.approx(table.loc[("imp", "mean"), task] - 40*best)


def test_table_6_uses_the_other_metric(runs):
    both = tables.both_metrics(runs)
    assert list(both) == ["MRPC, F1", "MRPC, Accuracy"]
    assert both["MRPC, Accuracy"]["full", "mean"] - both["MRPC, F1"]["full", "mean"] == pytest.approx(10)


def test_transfer_matrix_agrees_with_compare(runs):
    points, as_good, count = transfer_matrix(runs, .7)
    tickets = chosen(runs, ("own",), method="imp", asked_sparsity=.7)
    difference, at_least = transfer_to_own(tickets)
    for source in METRICS:
        assert count[source] == at_least[source]
        for task in METRICS: assert as_good.at[source, task] == (difference.at[source, task] >= -1e-9)
    assert points.at["mlm", "sst2"] == pytest.approx(100*(tickets[(tickets.source == "mlm") & (tickets.task == "sst2")].score.mean() - .905))
    assert "pruning θ0" in points.index


def test_cells_of_a_target_are_of_the_same_seeds():
    "MLM's ticket is five points below the own one of its seed, and above the mean over the own ones of both seeds"
    rows = [dict(task="mrpc", source=source, seed=seed, score=score, full_score=full) for source, seed, score, full in
            (("mrpc", 0, .8, .9), ("mrpc", 1, .6, .7), ("mlm", 0, .75, .9))]
    common = dict(model="m", method="imp", own=False, whole=True, source_whole=True, asked_sparsity=.7, start="pretrained", rewind=0., mask_init="omp", mask_at=None)
    table = pd.DataFrame([common | row | {"own": row["source"] == row["task"]} for row in rows])
    points, dark, count = transfer_matrix(table, .7)
    assert points.at["mlm", "mrpc"] == pytest.approx(-15) and points.at["mrpc", "mrpc"] == pytest.approx(-10)
    assert not dark.at["mlm", "mrpc"] and count["mlm"] == 0
    apart = tables.on_shared_seeds(table.assign(seed=[1, 2, 0]))   # no seed in common: all that there is
    assert len(apart) == 3


def several_ways(*rows):
    "Tickets of one task at 70 %: field values and score"
    common = dict(task="mrpc", model="m", method="imp", source="mlm", own=False, whole=True, source_whole=True, source_train=np.nan, asked_sparsity=.7,
                  start="pretrained", rewind=0., mask_init="omp", mask_at=None, full_score=.9)
    return pd.DataFrame([common | row for row in rows])


def test_later_rewinding_and_fewer_examples_are_compared_on_the_same_seeds():
    "One way's only seed is the better one; the mean over both seeds of the other says nothing about it"
    late = several_ways(dict(seed=0, score=.8), dict(seed=1, score=.6), dict(rewind=.1, seed=0, score=.78), dict(method="standard", seed=0, score=.81))
    table = rewinding(late, "mlm")
    assert table.loc["rewind to 10 %", "mrpc"] == pytest.approx(-2) and table.loc["standard pruning", "mrpc"] == pytest.approx(1)
    few = dict(source_train=100, source_whole=False)
    table = tables.source_table(several_ways(dict(seed=0, score=.8), dict(seed=1, score=.6), few | dict(seed=0, score=.78),
                                             dict(source="mlm+mrpc", seed=0, score=.79), dict(source="mrpc", own=True, seed=1, score=.5),
                                             dict(source="mrpc", own=True, seed=0, score=.82)))
    assert {name: round(value, 6) for name, value in table.mrpc.items()} == {"mlm": 80, "mlm, 100 examples": 78, "mlm+own task": 79, "own task": 82}


def test_figure_9_has_all_seeds_of_its_own_whatever_table_8_has(monkeypatch):
    both = [dict(source=source, seed=seed, score=score) for source, scores in (("mlm", (.8, .6)), ("mlm+mrpc", (.7, .7))) for seed, score in enumerate(scores)]
    rows, drawn = several_ways(*both, dict(source_train=100, source_whole=False, seed=0, score=.78)), []
    monkeypatch.setattr(chen, "grouped_bars", lambda table, label: drawn.append(table) or types.SimpleNamespace(figure=None))
    monkeypatch.setattr(chen, "sources_judged", lambda *_: [])
    chen.sources_compared({"m": rows})
    assert drawn[0].loc["mrpc"].round(6).to_dict() == {"mlm": 70, "mlm+own task": 70}


def test_figure_7_shows_the_tasks_that_were_rewound(monkeypatch):
    late, drawn = several_ways(dict(seed=0), dict(seed=0, task="rte"), dict(rewind=.1, seed=0)).assign(score=.8), []
    monkeypatch.setattr(chen, "grouped_bars", lambda table, label: drawn.append(table) or types.SimpleNamespace(figure=None))
    monkeypatch.setattr(chen, "standard_against", lambda *_: None)
    chen.rewound({"m": late, "other": late[late.rewind == 0]})
    assert [list(table.index) for table in drawn] == [["mrpc"]]


def test_ways_of_pruning_and_longer_retraining_are_compared_on_the_same_seeds(monkeypatch):
    rows = [dict(task="mrpc", model="m", experiment=experiment, seed=seed, max_steps=120, bad_retrained=score, good_pruned=score) for experiment, seed, score in
            (("s-pruning", 0, .8), ("s-pruning", 1, .6), ("12 epochs", 0, .82), ("super-survivors", 0, .79), ("m-pruning", 0, .85), ("m-pruning", 1, .65))]
    gates, drawn = pd.DataFrame(rows, columns=[*rows[0], "good_size", *set(prasanna.OUTCOMES) - set(rows[0])]), {}
    assert prasanna.longer_means(gates).mrpc.to_dict() == {"120 steps": .8, "12 epochs": .82}
    monkeypatch.setattr(prasanna, "bars", lambda rows, title: drawn.setdefault((title, *sorted(set(rows.method))), rows))
    monkeypatch.setattr(prasanna, "removed_more", lambda *_: [])
    prasanna.outcomes_drawn(gates)
    assert set(drawn["m", "s-pruning", "super-survivors"].seed) == {0} and set(drawn["m", "m-pruning", "s-pruning"].seed) == {0, 1}


def test_points_along_a_training_are_of_the_same_seeds(runs):
    "Seeds and masks that only the end of a training has say nothing about the way there"
    end = runs[runs.method.eq("tamt-mlm") & runs.mask_at.isna() & runs.mask_init.ne("random")]
    more = pd.concat([runs, end.assign(seed=7, score=.1), end.assign(mask_seed=9, score=.1)], ignore_index=True)
    (s, rows), = liu.along_runs(more).items()
    assert s == .7 and set(rows.seed) == {0} and {"imp", "omp", "tamt-mlm"} <= set(rows.method)
    alone = runs[runs.seed == 0]
    pd.testing.assert_frame_equal(liu.curves_along(rows), liu.curves_along(liu.along_runs(alone)[.7]))
    pd.testing.assert_frame_equal(liu.starts_along(more), liu.starts_along(alone))


def test_the_line_of_imp_is_its_best_mean_not_its_luckiest_seed():
    rows = pd.DataFrame([dict(task="mrpc", metric="accuracy", method="imp", mask_steps=np.nan, mask_at=np.nan, round_steps=steps, score=score)
                         for steps, score in ((10, .7), (10, .9), (20, .82), (20, .84))])
    axes = figures.step_curve(rows, "mrpc")
    assert [line.get_ydata()[0] for line in axes.lines] == [pytest.approx(.83)]


def test_a_matrix_is_laid_out_as_the_paper_prints_its_own(runs):
    ours, theirs = chen.as_printed(*transfer_matrix(runs, .7)), chen.printed_matrix()[0]
    for mine, paper in ((ours[0].index, theirs.index), (ours[0].columns, theirs.columns)):
        known = [name for name in mine if name in set(paper)]
        assert known == [name for name in paper if name in set(mine)] and list(mine[:len(known)]) == known
    assert list(ours[1].index) == list(ours[0].index) == list(ours[2].index) and ours[2].notna().all()


def test_own_winning_sparsity_takes_each_source_at_its_own(runs):
    levels = chen_table(runs).loc[("sparsity", "%")].dropna() / 100
    rows = tables.transfer_runs(runs, None)
    assert {source: set(group.asked_sparsity) for source, group in rows.groupby("source")} == {source: {s} for source, s in levels.items()}


def test_rank_correlation_by_hand(runs):
    table = rank_correlation(runs).set_index(["task", "sparsity"])
    rows = chosen(runs, ("own",), task="mrpc", asked_sparsity=.5)
    rows = rows[rows.method.isin(["omp", "random", "tamt-mlm", "tamt-kd"]) | (rows.method == "imp") & (rows.source == "mlm")]
    assert table.at[("mrpc", .5), "points"] == len(rows)
    assert table.at[("mrpc", .5), "rho"] == pytest.approx(np.corrcoef(rankdata(rows.mlm_loss), rankdata(rows.score))[0, 1])
    assert table.at[("average", .5), "rho"] < -.9
    with pytest.raises(BadInput, match="loss must be one of mlm_loss, kd_loss"): rank_correlation(runs, "loss")


def test_a_ticket_that_lacks_a_usual_task_has_no_average(runs):
    final = chosen(runs, ("own",))
    whole, fewer = averages(final), averages(final[(final.task != "mlm") | (final.method != "tamt-kd")])
    assert set(whole.method) - set(fewer.method) == {"tamt-kd"} and set(whole.tasks) == set(fewer.tasks) == {3}
    omp = final[(final.method == "omp") & (final.asked_sparsity == .5)]
    assert whole.query("method == 'omp' and asked_sparsity == .5").score.item() == pytest.approx(omp.groupby("task").score.mean().mean())


def test_rewinding_needs_its_reference(runs):
    table = rewinding(runs, "mlm")
    assert table.loc["rewind to 0 %"].dropna().eq(0).all() and table.at["standard pruning", "sst2"] < 0
    assert rewinding(runs[runs.method == "standard"], "mlm").empty


def test_no_p_value_is_printed_as_nothing(runs):
    many = pd.concat([runs.assign(seed=runs.seed + 10*i, score=runs.score + .001*i) for i in range(8)], ignore_index=True)
    noisy = many.assign(mlm_loss=.02*np.random.default_rng(0).random(len(many)) - many.score, kd_loss=np.nan)
    found = next(table for caption, table in liu.losses_and_scores({"m": noisy}).shown.items() if caption.startswith("Rank correlation"))
    assert found.p.astype(float).between(1e-300, 5e-4).any() and not found.p.isin(["0", "0.0"]).any()


def test_gaps_name_what_is_missing(runs):
    assert gaps(runs[(runs.task != "mrpc") | (runs.method != "omp") | (runs.seed == 0)]) == ["mrpc, omp: of 2 seeds 50 % has 1, 70 % has 1"]


@pytest.mark.parametrize("gains, said", [([1, 2], "holds, everywhere"), ([1, -2], "holds in part, in 1 of 2 (not b)"), ([-1, -2], "does not hold, in 0 of 2"), ([np.nan, np.nan], "no runs to judge it by"), ([0, 1], "not a")])
def test_findings(gains, said): assert said in finding("it helps", pd.Series(gains, ["a", "b"], dtype=float))


def test_verdict_on_the_papers_own_numbers_is_full_agreement():
    row = paper_table("chen_2020", "Table 2").iloc[1]
    assert verdict(row, row) == "same sign in 11 of 11, same order, within 0.0 points (median 0.0)"
    assert "same sign in 0 of 11, rank correlation -1.00" in verdict(-row, row)
    assert "nothing of ours for MNLI" in verdict(row.iloc[1:], row)


def test_a_picture_keeps_the_colours_of_methods_apart():
    "Twelve lines, each in its method's colour: none comes nearer to another's than to its own"
    names = [name for name in METHODS if name != "given"]
    figure, ax = plt.subplots(figsize=(8, 5))
    for at, name in enumerate(names): ax.plot([0, 1], [at, at + .7], color=figures.colour_of(name), linewidth=3, label=name)
    ax.legend()
    page = report.picture(figure, "lines").split("base64,")[1].split('"')[0]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(page))).convert("RGB"), float).reshape(-1, 3)
    wanted = {figures.colour_of(name): np.array(to_rgb(figures.colour_of(name))) * 255 for name in names}
    found = {colour: pixels[((pixels - rgb)**2).sum(1).argmin()] for colour, rgb in wanted.items()}
    for colour, pixel in found.items(): assert min(wanted, key=lambda other: ((wanted[other] - pixel)**2).sum()) == colour
    assert len({tuple(pixel) for pixel in found.values()}) == len(wanted)


def test_a_heatmap_takes_fewer_bytes_and_counts_have_one_decimal():
    draw = np.random.default_rng(0)
    ax = figures.survival_heatmap(draw.random((4, 4)) * 9, draw.random(4) * 9, label="tasks", most=9)
    assert all(re.fullmatch(r"\d\.\d", text.get_text()) for text in ax.texts if text.get_text())
    pixels = Image.open(io.BytesIO(base64.b64decode(report.picture(ax.figure).split("base64,")[1].split('"')[0])))
    assert len(pixels.convert("RGB").getcolors()) <= 48
    shares = figures.survival_heatmap(np.array([[.5, 1]]), np.array([0]))
    assert [text.get_text() for text in shares.texts if text.get_text()] == [".50", "1.00", ".00"]


def test_a_page_shows_neither_warnings_nor_row_numbers(tmp_path):
    import nbformat
    outputs = [nbformat.v4.new_output("stream", name=name, text=f"on {name}") for name in ("stdout", "stderr")]
    cells = [nbformat.v4.new_markdown_cell("$x$"), nbformat.v4.new_code_cell("1", outputs=outputs), nbformat.v4.new_raw_cell("raw")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path/"page.ipynb")
    page = report.whole_page(tmp_path/"page.ipynb")
    assert "on stdout" in page and "on stderr" not in page
    numbered, named = pd.DataFrame({"claim": ["one"]}), pd.DataFrame({"a": [1]}, index=pd.Index(["mnli"], name="row"))
    html = report.Section({"Table 1": numbered, "Table 2": named})._repr_html_()
    assert "<th>0</th>" not in html and "<th>mnli</th>" in html and "row" not in re.findall(r"<th>(.*?)</th>", html)


def test_pandas_does_not_warn_of_a_table_in_pieces():
    "It did, at every step of a page"
    place = Path(__file__).parent.parent/"nbs"/"reports"/"chen_2020_micro.csv"
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.PerformanceWarning)
        for runs in worlds(place, place.parent/"wiki_mini.csv").values():
            rewinding(runs, "mlm")
            assert len(tables.summary_table(runs.copy(deep=False)))


@pytest.mark.parametrize("paper", report.REPORTS)
def test_reports_are_shipped_with_one_parameters_cell(paper):
    assert report.report_path(paper).read_text().count('"parameters"') == 1


SENTENCES = {
    "chen_2020": ["IMP beats random, at 70 % (Table 2), micro:", "a winning ticket on 3 of 3 tasks", "tickets that transfer best at 70 % (micro)", "rewinding to θ0 beats standard pruning on MLM", "pruned weights in common"],
    "liu_2022": ["tamt-mlm beats imp, over all sparsities (Figure 3), micro:", "a lower mlm loss goes with a higher score (Figure 5), micro:", "an OMP start beats a random start (Figure 7), micro:", "IMP's best", "Jaccard of TAMT-MLM and IMP at 70 %"],
}


def text_of(page): return page.read_text().replace("&#39;", "'").replace("\n", " ")


@pytest.mark.parametrize("paper", SENTENCES)
def test_a_report_of_a_small_study(paper, folder, tmp_path):
    page = render(paper, folder, tmp_path/"pages"/"report.html")
    assert [sentence for sentence in SENTENCES[paper] if sentence not in text_of(page)] == []
    assert "data:image/" in page.read_text() and not re.search(r"(src|href)=.https?://", page.read_text()) and list(page.parent.iterdir()) == [page]


def test_a_report_of_gates(gates_folder, tmp_path):
    said = text_of(render("prasanna_2020", gates_folder, tmp_path/"report.html"))
    for sentence in ("s-pruning: good subnetworks beat random ones (Table 3), micro: no evidence, +10.0 points [+10.0, +10.0] over 2 tasks and 2 seeds",
                     "m-pruning: good subnetworks beat bad ones (Table 3), micro: no evidence, +30.0 points",
                     "s-pruning: random subnetworks do nearly as well as good ones (Table 3), micro: no evidence, -25.0 points of the gain",
                     "s-pruning: bad subnetworks do nearly as well as good ones (Table 3), micro: no evidence, -75.0 points of the gain",
                     "m-pruning: earlier layers get pruned more (Figure 1), micro: no evidence, +12.5 points of survival"): assert sentence in said


def test_procedures_and_what_is_pruned_never_share_a_mean(tmp_path):
    "As released, heads alone and longer retraining have other scores: no mean of the paper's own runs moves"
    def write(score, **values):
        spec = StructuredSpec(task="sst2", **values)
        scores = {f"{kind}_{what}": score for kind in ("good", "random", "bad") for what in ("size", "pruned", "retrained")}
        full = Gates.full(2, 4).to_json()
        finish(open_run(spec, tmp_path), task="sst2", seed=spec.seed, method="s-pruning", metric="accuracy", score=score, full_score=.9, majority=.5, gates={"good": full}, **scores)
    for seed in range(2):
        write(.8, seed=seed)
        write(.2, seed=seed, importance="as_released", heads_step=.05, draw="bernoulli", keep_bias=False)
        write(.1, seed=seed, prune="heads")
        write(.3, seed=seed, retrain_epochs=6)
    gates = prasanna.page_gates(str(tmp_path))
    assert gates.groupby(["model", "experiment"]).good_retrained.mean().to_dict() == {
        ("micro", "s-pruning"): .8, ("micro", "heads alone"): .1, ("micro", "6 epochs"): .3, ("micro, as released", "s-pruning"): .2}
    tables = prasanna.outcome_scores(gates).shown
    assert tables["Table 3, s-pruning, micro"].at["good, retrained", "sst2"] == "0.80 ± 0.00"
    assert tables["Table 3, s-pruning, micro, as released"].at["good, retrained", "sst2"] == "0.20 ± 0.00"
    assert {"Figure 15, micro, heads and MLPs jointly", "Figure 15, micro, heads alone"} <= set(prasanna.over_tasks(gates).shown)


def attention_run(root, task):
    "One attention run: a tenth of the maps is heterogeneous, of the surviving heads two"
    shares = lambda heads: {name: float(share) for name, share in zip(CLASSES, (.3, .3, .2, .2 - (.2 if heads == "surviving" else .1), .2 if heads == "surviving" else .1))}
    places = itertools.product(("all", "surviving"), ("pre-trained", "fine-tuned"), ("raw", "norm"))
    finish(open_run(AttentionSpec(task=task), root), task=task, texts=9, shares={" ".join(place): shares(place[0]) for place in places},
           correlations={"raw": dict(pearson=.5, low=-.4, high=.4, p=.01), "norm": dict(pearson=None, low=None, high=None, p=None)})


def test_a_report_of_attention(tmp_path, capsys):
    "With the paper's shares beside, through the command line"
    for task in ("sst2", "mrpc"): attention_run(tmp_path/"runs", task)
    printed = {"vertical": .2, "diagonal": .2, "mix": .2, "block": .2, "other": .2}
    write_json(tmp_path/"authors"/"attention_pattern_shares.json", {setting: {"QNLI": {"attention": printed, "weight normed": printed}} for setting in attention_page.SETTINGS})
    assert main(["report", "attention", "--runs", str(tmp_path/"runs"), "--published", str(tmp_path/"authors")]) == 0
    said = text_of(tmp_path/"runs"/"attention.html")
    for sentence in ("micro: mrpc, sst2", "+10.0 (2 of 2 tasks rise)", "the paper's BERT-base", "2 of 2 correlations lie outside what chance gives"): assert sentence in said
    assert "Figure 18, the paper, raw, as released" in said and "Figure 4, micro, norm" in said


def test_a_table_of_attention_runs_says_what_their_folder_does(tmp_path):
    "Shares, correlations and whose survivors they are; a ticket that is not in the table is of no known kind"
    root = folder_of("prasanna_2020_micro", tmp_path/"runs", ("structured",), ("cola",))
    for name, table in (("whole", results(folder_of("micro_attention", root, ("attention",), ("cola",)))), ("alone", results(root).query("template == 'attention'"))):
        table.to_csv(tmp_path/f"{name}.csv", index=False)
    here, there, alone = (attention_page.page_attention(str(place)) for place in (root, tmp_path/"whole.csv", tmp_path/"alone.csv"))
    pd.testing.assert_frame_equal(*(attention_page.attention_shares(found).sort_index() for found in (here, there)))
    said = lambda found: {result["id"]: (result["task"], result["survivors"], result["correlations"]) for result in found}
    assert said(here) == said(there) and {kind for _, kind, _ in said(there).values()} == {"super-survivors"}
    assert {kind for _, kind, _ in said(alone).values()} == {"survivors"}


def test_attention_refuses_what_is_no_results_table(tmp_path):
    (tmp_path/"table.csv").write_text("id\n")
    (tmp_path/"notes.txt").write_text("x")
    with pytest.raises(BadInput, match="has no column template"): attention_page.page_attention(str(tmp_path/"table.csv"))
    with pytest.raises(BadInput, match="must be a folder of runs"): attention_page.page_attention(str(tmp_path/"notes.txt"))


@pytest.mark.parametrize("paper", SENTENCES)
def test_a_report_of_a_partial_study(paper, folder, tmp_path):
    "A third of the runs, the full models not among them, and a half-written one"
    for i, path in enumerate(sorted(folder.glob("*/result.json"))):
        spec = read_result(path.parent)["spec"]
        if i % 3 == 0 and spec.get("method") not in ("dense", None): shutil.copytree(path.parent, tmp_path/"runs"/path.parent.name)
    open_run(TicketSpec(task="qqp"), tmp_path/"runs")
    page = render(paper, tmp_path/"runs", tmp_path/"report.html")
    assert "micro lacks" in text_of(page)


@pytest.mark.parametrize("paper", report.REPORTS)
def test_a_report_without_runs_shows_the_papers_side(paper, tmp_path):
    (tmp_path/"runs").mkdir()
    said = text_of(render(paper, tmp_path/"runs", tmp_path/"report.html"))
    assert "only the paper's side is shown" in said and "lottery-nb sweep grids/" in said


@pytest.mark.parametrize("error, kind", [("BadInput", BadInput), ("ZeroDivisionError", PapermillExecutionError)])
def test_a_report_that_fails_leaves_no_page(error, kind, tmp_path, monkeypatch):
    cells = [v4.new_code_cell('runs: str = ""', metadata={"tags": ["parameters"]}), v4.new_code_cell(f"from lottery_nb.files import BadInput\nraise {error}('of result x')")]
    kernel = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    nbformat.write(v4.new_notebook(cells=cells, metadata=kernel), tmp_path/"chen_2020.ipynb")
    monkeypatch.setattr(report, "report_path", lambda page: tmp_path/f"{page}.ipynb")
    with pytest.raises(kind, match="of result x"): render("chen_2020", tmp_path, tmp_path/"report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["chen_2020.ipynb"]


@pytest.mark.parametrize("page, given, kept", [
    ("prasanna_2020", {}, ("more", "authors")), ("chen_2020", {}, ("more", "")), ("attention", {"second": "other", "published": "theirs"}, ("other", "theirs"))])
def test_places_are_those_of_the_caller(page, given, kept, tmp_path, monkeypatch):
    "Options and the environment, in relative paths; a page is given what it takes"
    names = ["runs", "second"] + ["published"] * (page != "chen_2020")
    cells = [v4.new_code_cell("\n".join(f'{name}: str = ""' for name in names), metadata={"tags": ["parameters"]}), v4.new_code_cell(f"print([{', '.join(names)}])")]
    for folder in ("shipped", "runs", "other", "theirs"): (tmp_path/folder).mkdir()
    nbformat.write(v4.new_notebook(cells=cells, metadata={"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}), tmp_path/"shipped"/f"{page}.ipynb")
    monkeypatch.setattr(report, "report_path", lambda page: tmp_path/"shipped"/f"{page}.ipynb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOTTERY_NB_SECOND", "more")
    monkeypatch.setenv("LOTTERY_NB_PUBLISHED", "authors")
    said = text_of(render(page, "runs", "report.html", **given))
    assert str([str(tmp_path/name) for name in ("runs", *kept) if name]) in said


def test_a_damaged_result_is_named(folder, tmp_path):
    one = next(folder.glob("sst2-imp-*"))
    shutil.copytree(one, tmp_path/one.name)
    write_json(tmp_path/one.name/"result.json", read_result(one) | {"schema": 0})
    with pytest.warns(UserWarning, match="has schema 0"): assert len(results(tmp_path)) == 0


def test_smaller_training_sets_are_no_plain_runs(runs, tmp_path):
    small = runs[runs.method == "imp"].assign(max_train=100, score=0.)
    pd.concat([runs, small]).to_csv(tmp_path/"both.csv", index=False)
    both = worlds(tmp_path/"both.csv")["micro"]
    assert both.whole.sum() == len(runs)
    pd.testing.assert_frame_equal(chen_table(both), chen_table(runs), check_index_type=False)
    assert len(tables.agnostic(both, ("whole",))) > len(tables.agnostic(both))


def test_a_source_is_plain_with_as_many_examples_as_its_own_runs_had(tmp_path):
    "The small English BERT finds MLM's masks on 4800 blocks, for itself and for others; a mask from 100 blocks is a question of its own"
    write(tmp_path, task="mlm", method="imp", max_train=4800)
    for count in (100, 4800): write(tmp_path, task="sst2", method="imp", source="mlm", source_train=count)
    rows = ticket_runs(tmp_path)
    assert rows.set_index("source_train").source_whole[[100, 4800]].tolist() == [False, True]
    assert "mlm" in transfer_matrix(rows)[0].index and np.isclose(transfer_matrix(rows)[0].at["mlm", "sst2"], 100 * (rows.score - rows.full_score)[rows.source_train == 4800].item())


def test_what_a_mean_would_mix_is_named(runs):
    assert tables.mixed(runs) == []
    assert tables.mixed(pd.concat([runs, runs[runs.method == "omp"].assign(scope="matrix")])) == ["scope"]
    assert tables.mixed(runs.assign(mask_precision=runs.mask_precision.astype(object).where(runs.seed > 0))) == []   # runs from before the field


def test_a_model_without_imp_has_no_sources(runs):
    assert len(tables.source_table(runs[runs.method != "imp"])) == 0


def test_a_made_up_method_is_known_everywhere(runs, monkeypatch):
    "Summary, curves and both papers' pages, once it has a row; and by its name alone where results come from elsewhere"
    both = pd.concat([runs, runs[runs.method == "omp"].assign(method="made-up")], ignore_index=True)
    assert "made-up" in set(tables.summary_table(both).method)
    figure = chen.all_sparsities({"micro": both}).shown["Figure 11, micro"]
    assert "made-up" in [text.get_text() for text in figure.legends[0].get_texts()]
    assert not any("made-up" in verdict.claim for verdict in liu.average_scores({"micro": both}).verdicts)
    monkeypatch.setitem(METHODS, "made-up", METHODS["omp"]._replace(colour="#123456"))
    monkeypatch.setitem(READS, "made-up", ("scope",))
    assert "made-up beats random, over all sparsities" in [verdict.claim for verdict in liu.average_scores({"micro": both}).verdicts]
    assert figures.colour_of("made-up") == "#123456"
    plt.close("all")


@pytest.mark.parametrize("name, said", [
    ("none.csv", "there is no results table .*none.csv"), ("reviews.csv", "is no results table: it has no column id"), ("empty.csv", "is no results table: No columns"),
    ("bytes.csv", "is no results table: "), ("bytes.parquet", "is no results table: "), ("words.csv", "column score of .*words.csv must hold numbers, got 'high'"), ("folder.csv", "is no results table: "),
    ("torn.csv", "is no results table: ")])
def test_a_file_that_is_no_results_table_is_named(name, said, tmp_path, capsys, monkeypatch):
    "By every command that reads one, and before a page is begun"
    (tmp_path/"folder.csv").mkdir()
    for file, text in {"reviews.csv": b"text,label\ngood,1\n", "empty.csv": b"", "bytes.csv": bytes(range(128, 256)), "bytes.parquet": b"PAR1 not one",
                       "words.csv": b"id,template,score\na,ticket,.8\nb,ticket,high\n", "torn.csv": b'id,template\n"a,ticket\n'}.items(): (tmp_path/file).write_bytes(text)
    monkeypatch.chdir(tmp_path)
    assert main(["claims", "chen_2020", "--runs", name]) == 2
    assert re.search(said, capsys.readouterr().err.replace("\n", " "))
    with pytest.raises(BadInput, match=said): tables.worlds(name)
