"Verdicts: what they say against independent computations, and how often they are wrong where nothing is there"
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from lottery_nb.verdicts import by_holm, by_seed, gain_interval, left_out, paired, share_of_gain, verdict_line, verdict_table, weigh


def gains(grid):
    "Pairs of a grid, tasks × seeds"
    return pd.DataFrame([(f"t{t}", s, value) for t, row in enumerate(grid) for s, value in enumerate(row) if not np.isnan(value)],
                        columns=["task", "seed", "gain"])


@pytest.mark.parametrize("tasks, seeds", [(1, 3), (1, 5), (3, 3), (9, 2), (9, 5)])
def test_nothing_there_is_rarely_called_something(tasks, seeds):
    "Differences without a mean: not more than the level, three deviations of a binomial granted"
    rng, tries = np.random.default_rng(1), 100
    wrong = sum(weigh("x", "T", "m", gains(rng.normal(0, 1, (tasks, seeds)))).says != "no evidence" for _ in range(tries))
    assert wrong / tries <= .05 + 3 * (.05*.95/tries)**.5


@pytest.mark.parametrize("tasks", [1, 4])
def test_what_is_resolvable_is_found_four_times_in_five(tasks):
    rng, tries, seeds = np.random.default_rng(2), 300, 5
    size = by_seed(pd.DataFrame(rng.normal(0, 1, (4000, 5))))[1]   # the deviation of 4,000 tasks' mean is tiny
    assert size < .2
    effect = 1.68 / tasks**.5   # five seeds, power .8: t tests find 1.68 deviations (statsmodels and any table)
    found = sum(by_seed(pd.DataFrame(rng.normal(effect, 1, (tasks, seeds))))[0] < .05 for _ in range(tries))
    assert .72 < found / tries < .88


@given(st.integers(3, 6), st.integers(4, 6), st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_interval_is_the_crossed_bootstrap(tasks, seeds, seed):
    grid = np.random.default_rng(seed).normal(size=(tasks, seeds))
    low, high = gain_interval(pd.DataFrame(grid))
    rng = np.random.default_rng(3)
    draws = [grid[np.ix_(rng.integers(0, tasks, tasks), rng.integers(0, seeds, seeds))].mean() for _ in range(2000)]
    spread = np.std(draws) + 1e-12
    assert abs(low - np.quantile(draws, .025)) < .5*spread and abs(high - np.quantile(draws, .975)) < .5*spread


@given(st.lists(st.tuples(*[st.floats(-1, 1)]*2), min_size=3, max_size=8))
@settings(max_examples=40, deadline=None)
def test_p_is_that_of_a_paired_t_test(pairs):
    a, b = np.array(pairs).T
    if np.std(a - b) < 1e-6: return
    assert np.isclose(by_seed(pd.DataFrame([a - b]))[0], ttest_rel(a, b).pvalue)


def test_holm_counts_by_hand():
    "p of four tasks, smallest first, against .05/4, .05/3 ...: the first that fails ends it"
    rng = np.random.default_rng(4)
    grid = pd.DataFrame(rng.normal(0, 1, (4, 5)) + np.array([[6], [-6], [1], [0]]))
    p = sorted((ttest_rel(row, 0*row).pvalue, row.mean()) for _, row in grid.iterrows())
    kept = []
    for i, (value, mean) in enumerate(p):
        if value > .05 / (4 - i): break
        kept.append(mean > 0)
    assert by_holm(grid) == (sum(kept), len(kept) - sum(kept)) and len(kept) >= 2


@pytest.mark.parametrize("grid, says", [
    (np.zeros((0, 0)), "no evidence"), ([[3.]], "no evidence"), ([[3.], [4.]], "no evidence"), ([[0., 0., 0.]], "no evidence"),
    ([[3., np.nan, 3.1], [np.nan, 2., np.nan]], "no evidence"), ([[2., 2., 2.]], "holds"), ([[-2., -2., -2.]], "does not hold"),
    ([[np.nan, 5.], [4., np.nan]], "no evidence"), ([[5., 5.1]], "holds"), ([[5., 4.]], "no evidence")])
def test_small_and_ragged_studies(grid, says):
    v = weigh("x", "T", "m", gains(np.asarray(grid, float)))
    assert v.says == says
    assert "nan" not in verdict_line(v) and not verdict_table([v]).isna().any().any()


def test_one_seed_is_no_evidence_and_gives_its_number():
    said = verdict_line(weigh("IMP beats random", "Table 2", "m", gains([[12.], [14.]])))
    assert "no evidence" in said and "+13.0 points" in said and "one seed" in said


def test_a_margin_is_granted_to_the_claim_alone():
    near = gains(np.random.default_rng(5).normal(-.5, .1, (3, 5)))
    assert weigh("no worse", "T", "m", near).says == "does not hold"
    assert weigh("no worse", "T", "m", near, margin=1).says == "holds"


def test_pairs_share_task_seed_and_sparsity():
    runs = pd.DataFrame([("a", .5, 0, .9), ("a", .7, 0, .8), ("a", .7, 1, .7), ("b", .7, 0, .6)], columns=["task", "asked_sparsity", "seed", "score"])
    other = pd.DataFrame([("a", .5, 0, .8), ("a", .7, 0, .5), ("a", .7, 2, .1)], columns=runs.columns)
    assert paired(runs, other).values.tolist() == [["a", 0, pytest.approx(20)]]
    dense = pd.DataFrame([("a", 0, 1.), ("a", 1, .9)], columns=["task", "seed", "score"])
    assert paired(dense, runs, by=("task", "seed")).gain.tolist() == pytest.approx([15, 20])


def test_shares_and_what_leaves():
    rows = pd.DataFrame({"task": "a", "seed": [0, 1], "score": [.7, .7], "full_score": [.8, .82], "majority": .6})
    assert share_of_gain(rows).tolist() == pytest.approx([.5, .1/.22])
    assert left_out(rows) == []
    assert left_out(rows.assign(full_score=[.5, .7])) == ["a"]
    assert left_out(rows.drop(columns="majority")) == []   # runs that do not know it pass
