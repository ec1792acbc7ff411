"""The page of criteria: pairs, intervals, costs and sentences from runs whose answer is known."""
import numpy as np
import pandas as pd
import pytest

from lottery_nb.criteria import compared, criteria_costs, criteria_overview, criteria_paired, criteria_runs, criteria_scores, differences, interval, kept_table, paired_table, steps_found
from lottery_nb.plan import pieces
from lottery_nb.spec import TicketSpec
from lottery_nb.store import finish, open_run

LOST = {"omp": .2, "fisher": .05, "random": .5, "imp": .1, "movement": .3}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    "Finished runs of two tasks, three seeds and two sparsities; a score falls by what its criterion loses; one run trained for longer, one from other weights"
    root = tmp_path_factory.mktemp("runs")
    def write(score, full, **values):
        spec = TicketSpec(**values)
        finish(open_run(spec, root), task=spec.task, method=spec.method, seed=spec.seed, metric="accuracy", score=score, full_score=full, sparsity=spec.sparsity, kept=1, total=2,
               scores={"accuracy": score}, full_scores={"accuracy": full})
    for task, full in (("sst2", .8), ("qnli", .5)):
        for seed in range(3):
            write(full, full, task=task, seed=seed, method="dense", max_steps=80)
            for s in (.5, .9):
                for method, lost in LOST.items():
                    own = dict(round_steps=20) if method == "imp" else dict(movement="soft") if method == "movement" and seed == 2 else {}
                    write(full * (1 - lost * s), full, task=task, seed=seed, method=method, sparsity=s, max_steps=80, **own)
    write(.1, .8, task="sst2", method="omp", sparsity=.5, max_steps=320)
    write(.1, .8, task="sst2", method="omp", sparsity=.5, max_steps=80, start="reinit")
    return root


def test_shares_of_the_full_model_and_lengths_apart(root):
    ours = criteria_runs(str(root))
    assert {name: len(rows) for name, rows in ours.items()} == {"80 steps": 60, "320 steps": 1}
    table = kept_table(ours["80 steps"])
    assert list(table.index[:2]) == ["fisher", "imp"] and set(table.index) == {"fisher", "imp", "omp", "random", "movement, hard", "movement, soft"}
    assert table.loc["omp"].tolist() == pytest.approx([90., 82.]) and table.loc["movement, soft", 50.] == pytest.approx(85.)
    assert "60 tickets of 6 criteria, 2 tasks, 3 seeds" in criteria_overview(ours).shown["Runs"][0]


def test_pairs_are_of_the_same_place(root):
    rows = criteria_runs(str(root))["80 steps"]
    found = differences(rows, "fisher", "omp")
    assert len(found) == 12 and found.groupby("asked_sparsity").mean().tolist() == pytest.approx([7.5, 13.5])
    assert len(differences(rows, "movement, soft", "omp")) == 4 and not len(differences(rows, "no such", "omp"))
    assert paired_table(rows, "omp").loc["fisher", "50 %"] == "+7.5 [+7.5, +7.5]"
    sentence = compared(rows, "omp")
    assert "above: fisher (+10.5, +10.5 to +10.5), imp" in sentence and "below: movement, hard" in sentence and "random" in sentence


def test_an_interval_draws_places_not_runs():
    "Two sparsities of a place move together: the interval is that of the places' means, against a bootstrap by hand"
    index = pd.MultiIndex.from_product([["a", "b"], range(4), [.5, .9]], names=["task", "seed", "asked_sparsity"])
    values = pd.Series(np.random.default_rng(1).normal(1, 2, 16), index)
    means = values.groupby(level=["task", "seed"]).mean().to_numpy()
    mean, low, high = interval(values)
    draws = np.array([np.random.default_rng(n).choice(means, len(means)).mean() for n in range(4000)])
    assert mean == pytest.approx(values.mean()) and (low, high) == pytest.approx(tuple(np.quantile(draws, [.025, .975])), abs=.15)
    assert interval(values) == (mean, low, high)


def test_noise_is_not_told_apart():
    rng = np.random.default_rng(0)
    rows = pd.DataFrame([dict(task="t", seed=seed, asked_sparsity=.5, criterion=c, kept=90 + rng.normal()) for seed in range(9) for c in ("omp", "other")])
    assert "not told apart: other" in compared(rows, "omp")


def test_costs_are_the_plans(root):
    ours = criteria_runs(str(root))
    for _, row in ours["80 steps"].drop_duplicates(["method", "movement", "asked_sparsity"]).iterrows():
        spec = TicketSpec(task=row.task, method=row.method, sparsity=row.sparsity, max_steps=80, **(dict(round_steps=20) if row.method == "imp" else {}))
        planned = [piece.steps for piece in pieces(spec) if piece.kind != "retraining"]
        assert steps_found(row) == sum(planned) - (0 if row.method == "fisher" else 80)   # the full model that the run is compared with counts where the criterion scores it
    costs = criteria_costs(ours)
    assert costs.shown["Training steps to find one mask, 80 steps"].loc["imp"].tolist() == [100., 180.]
    assert "omp (86.0 % for 0 steps), fisher (96.5 % for 80 steps)" in costs.said[0] and "imp" not in costs.said[0]


def test_without_runs_every_part_says_what_makes_some():
    for part in (criteria_overview({}), criteria_scores({}), criteria_paired({}), criteria_costs({})): assert "lottery-nb sweep grids/criteria_micro.yaml" in repr(part) and not part.said


def test_figures_and_sentences(root):
    ours = criteria_runs(str(root))
    assert set(criteria_scores(ours).shown) == {f"{what}, {steps} steps" for what in ("Percent of the full model's score", "Score against sparsity") for steps in (80, 320)}
    assert [line.split(",")[0] for line in criteria_paired(ours).said] == ["80 steps", "80 steps", "320 steps"]
