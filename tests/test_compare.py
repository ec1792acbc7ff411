"""Criteria and agreement statistics against formulas written out, other libraries, and the published masks."""
import gzip
import itertools
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats
from statsmodels.stats.inter_rater import aggregate_raters, fleiss_kappa

from lottery_nb.compare import (seed_agreement, cochran, survival_correlation, kappa, mean_jaccard, null, overlap, read_masks, spread, statistics_of, survival, transfer,
                                transfer_to_full, transfer_to_own, winning, winning_sparsity)
from lottery_nb.files import BadInput
from lottery_nb.gates import Gates, weight_share

scores = st.lists(st.floats(0, 1), min_size=1, max_size=6)


@given(scores, scores)
def test_criteria_are_nested(full, sub):
    if winning(full, sub, "strict"): assert winning(full, sub, "std_sub") and winning(full, sub, "std_full")
    assert winning(full, full, "strict")


# Chen et al. 2020: full model, ticket at its highest winning sparsity, and whether one deviation of the ticket is needed for it
PAPER = [("CoLA", (54.5, .4), (53.8, .9), True), ("MLM", (63.5, .1), (63.2, .3), True), ("QQP", (90.2, .5), (90.0, .2), True), ("STS-B", (88.4, .3), (88.2, .2), True)]


@pytest.mark.parametrize("task,full,sub,won", PAPER)
def test_rows_that_decide_whose_deviation_counts(task, full, sub, won):
    full, sub = ([m - s, m, m + s] for m, s in (full, sub))
    assert winning(full, sub) is won and not winning(full, sub, "strict")


def test_spread_is_the_sample_deviation():
    assert spread([.1, .4, .9]) == pytest.approx((np.mean([.1, .4, .9]), np.std([.1, .4, .9], ddof=1)))


def test_highest_winning_sparsity_ignores_dips_below():
    assert winning_sparsity([.8], {.5: [.7], .7: [.8], .9: [.1]}) == .7


masks = st.integers(2, 5).flatmap(lambda k: st.integers(1, 12).flatmap(lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=k, max_size=k))).map(np.array)


def kappa_by_pairs(kept):
    "Fleiss' kappa from pairs of raters, head by head"
    k, _ = kept.shape
    pairs = list(itertools.combinations(range(k), 2))
    observed = np.mean([kept[a] == kept[b] for a, b in pairs])
    share = kept.mean()
    chance = share ** 2 + (1 - share) ** 2
    return (observed - chance) / (1 - chance)


@given(masks)
@settings(max_examples=150)
def test_kappa_by_pairs_and_by_statsmodels_raters(kept):
    if kept.all() or not kept.any(): assert kappa(kept) is None; return
    assert kappa(kept) == pytest.approx(kappa_by_pairs(kept), abs=1e-9)
    assert kappa(kept) == pytest.approx(fleiss_kappa(aggregate_raters(kept.T.astype(int), 2)[0]), abs=1e-9)


@given(masks)
@settings(max_examples=150)
def test_cochran_by_its_formula(kept):
    k, columns, rows = len(kept), kept.sum(1), kept.sum(0)
    below = k * rows.sum() - (rows ** 2).sum()
    q, p = cochran(kept)
    if below == 0: assert (q, p) == (None, None); return
    expected = (k - 1) * (k * (columns ** 2).sum() - columns.sum() ** 2) / below
    assert q == pytest.approx(expected, abs=1e-9) and p == pytest.approx(stats.chi2.sf(expected, k - 1), abs=1e-9)


@given(masks)
def test_jaccard_by_sets(kept):
    sets = [set(np.flatnonzero(row)) for row in kept]
    expected = np.mean([len(a & b) / len(a | b) if a | b else 1 for a, b in itertools.combinations(sets, 2)])
    assert mean_jaccard(kept) == pytest.approx(expected)


def test_cochran_cannot_see_which_heads():
    "D19: shuffling each seed's heads changes kappa and Jaccard, but a Q of equal sizes stays 0"
    rng = np.random.default_rng(0)
    same = np.tile(np.arange(40) < 20, (4, 1))
    shuffled = rng.permuted(same, axis=1)
    assert kappa(same) == pytest.approx(1) and abs(kappa(shuffled)) < .2
    assert cochran(shuffled) == (0., 1.)


def test_nulls_hold_their_level():
    "Masks without any agreement: p is uniform, so about 5 % fall below .05"
    rng = np.random.default_rng(0)
    ps = [null(kappa, rng.random((3, 40)) < .5, draws=99, seed=s)["p"] for s in range(200)]
    assert .01 <= np.mean(np.array(ps) <= .05) <= .11
    ps = [null(lambda k: cochran(k)[0], rng.random((3, 40)) < .5, "within_item", 99, s)["p"] for s in range(100)]
    assert .0 <= np.mean(np.array(ps) <= .05) <= .13


def test_permutation_p_of_cochran_agrees_with_chi2():
    kept = np.random.default_rng(3).random((4, 150)) < np.array([.5, .5, .55, .62])[:, None]
    assert null(lambda k: cochran(k)[0], kept, "within_item", 1000)["p"] == pytest.approx(cochran(kept)[1], abs=.03)


def test_within_seed_keeps_sizes_and_finds_structure():
    rng = np.random.default_rng(0)
    kept = rng.random((5, 12, 12)) < rng.random((12, 12))
    found = statistics_of(kept, 200, 0)
    assert found["kappa_null"]["p"] == pytest.approx(1 / 201) and found["kappa_null"]["low"] < 0 < found["kappa_null"]["high"] < found["kappa"]
    assert found["jaccard"] > found["jaccard_null"]["high"]
    assert statistics_of(kept, 200, 0) == found


def test_agreement_needs_two_seeds_of_one_shape():
    with pytest.raises(BadInput, match="at least two seeds, got 1"): seed_agreement([Gates.full(2, 2)])
    with pytest.raises(BadInput, match="one shape"): seed_agreement([Gates.full(2, 2), Gates.full(2, 3)])


@pytest.mark.parametrize("value", [0, 1])
def test_degenerate_agreement_is_none_not_a_crash(value):
    found = seed_agreement([Gates(np.full((2, 3), value), np.full(2, value))] * 3, draws=5)
    assert found["weight_share"] == value and found["kappa"] is None and found["cochran_q"] is None and found["cochran_q_null"] is None
    json.dumps(found, allow_nan=False)


def test_published_masks(assets):
    "The paper's sentence: kappa between .15 and .32 for all tasks (.15 is not a GLUE task, D18; WNLI is degenerate)"
    published = read_masks(assets/"prasanna2020"/"masks.json.gz")
    found = {task: seed_agreement(list(seeds.values()), draws=50) for task, seeds in published.items()}
    assert len(found) == 9 and all(len(f["heads"]) == 5 for f in found.values())
    usual = [f["kappa"] for task, f in found.items() if task != "WNLI"]
    assert .15 < min(usual) < max(usual) < .33 and found["WNLI"]["kappa"] == pytest.approx(-.25)
    assert all(f["kappa_null"]["p"] < .05 for task, f in found.items() if task != "WNLI")
    for task, seeds in published.items():
        raw = json.loads(gzip.decompress((assets/"prasanna2020"/"masks.json.gz").read_bytes()))["heads_mlps"][task]
        product = np.prod([np.array(raw[s]["head_mask"]) for s in seeds], 0)
        assert found[task]["super_heads"] == product.sum() and found[task]["heads"] == [int(np.sum(raw[s]["head_mask"])) for s in seeds]


@pytest.mark.parametrize("kind,heads,mlps", [("heads", None, 12), ("mlps", 144, None)])
def test_published_kinds_with_one_side(assets, kind, heads, mlps):
    for seeds in read_masks(assets/"prasanna2020"/"masks.json.gz", kind).values():
        for gates in seeds.values():
            if heads: assert gates.heads.sum() == heads
            if mlps: assert gates.mlps.sum() == mlps


def test_weight_share_of_bert_base():
    "An MLP of BERT-base weighs as much as 24 heads: 2·768·3072 against 4·768·64"
    one_head = Gates(np.eye(1, 144).reshape(12, 12), np.zeros(12))
    one_mlp = Gates(np.zeros((12, 12)), np.eye(1, 12)[0])
    assert weight_share(one_mlp) / weight_share(one_head) == pytest.approx(2 * 768 * 3072 / (4 * 768 * 64))


ENTRY = {"head_mask": [[1, 0], [1, 1]], "mlp_mask": [1, 0]}


@pytest.mark.parametrize("value,message", [
    ({}, "must hold a JSON object"), ([], "must hold a JSON object"), ({"other": {}}, "kind must be one of other"), ({"heads_mlps": 3}, "must hold task"),
    ({"heads_mlps": {"RTE": [ENTRY]}}, "must hold task"), ({"heads_mlps": {"RTE": {"1": 5}}}, "RTE, seed 1: there must be"),
    ({"heads_mlps": {"RTE": {"1": {**ENTRY, "mlp_mask": [1]}}}}, "as many MLPs as layers"), ({"heads_mlps": {"RTE": {"1": {**ENTRY, "head_mask": "x"}}}}, "head_mask must"),
    ({"heads_mlps": {"RTE": {"1": {**ENTRY, "head_mask": [[1], [1, 0]]}}}}, "rectangular"), ({"heads_mlps": {"RTE": {"1": {"mlp_mask": 7}}}}, "RTE, seed 1"),
    ({"heads_mlps": {"RTE": {"1": {**ENTRY, "mlp_mask": [1, None]}}}}, "mlps must"),
])
@pytest.mark.parametrize("zipped", [False, True])
def test_malformed_mask_files(tmp_path, value, message, zipped):
    path = tmp_path/"masks.json"
    path.write_bytes((gzip.compress if zipped else bytes)(json.dumps(value).encode()))
    with pytest.raises(BadInput, match=message): read_masks(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\x80\x81", gzip.compress(b"{}" * 999, mtime=0)[:-9], b"\x1f\x8bnot gzip"])
def test_damaged_mask_files(tmp_path, content):
    (tmp_path/"m.json").write_bytes(content)
    with pytest.raises(BadInput, match="m.json"): read_masks(tmp_path/"m.json")


def test_survival_is_the_heatmap_cell():
    mean, std = survival(np.array([[1, 1], [0, 1], [0, 1], [0, 1], [0, 1]], bool))
    assert mean.tolist() == [.2, 1] and std == pytest.approx([.4472, 0], abs=1e-4)


def test_overlap_counts_common_heads():
    rng = np.random.default_rng(0)
    by = {t: {s: Gates(rng.random((3, 4)) < .5, rng.random(3) < .5) for s in "12345"} for t in "ab"}
    table = overlap(by).set_index(["a", "b"])
    common = [sum(x and y for x, y in zip(by["a"][s].heads.ravel(), by["b"][s].heads.ravel())) for s in "12345"]
    assert table.loc[("a", "b"), "mean"] == np.mean(common) and table.loc[("a", "b"), "std"] == pytest.approx(np.std(common, ddof=1))
    assert table.loc[("a", "b"), "expected"] == pytest.approx(np.mean([by["a"][s].heads.sum() * by["b"][s].heads.sum() / 12 for s in "12345"]))
    assert len(overlap(by, "mlps")) == 4


def test_correlation_is_pearson_with_a_fair_interval():
    rng = np.random.default_rng(0)
    x, y = rng.random(144) < .3, rng.random(144)
    found = survival_correlation(x, y, draws=2000)
    assert found["r"] == pytest.approx(stats.pearsonr(x, y).statistic)
    assert found["p"] == pytest.approx(stats.pearsonr(x, y).pvalue, abs=.05)
    assert found["low"] == pytest.approx(-1.96 / np.sqrt(143), abs=.02) and found["high"] == pytest.approx(1.96 / np.sqrt(143), abs=.02)


def test_transfer_tables():
    tickets = pd.DataFrame([dict(source=s if s != t else "", task=t, score=v + e) for s, t, v in [("a", "a", .8), ("b", "a", .9), ("a", "b", .5), ("b", "b", .6), ("m", "a", .7)] for e in (-.02, .02)])
    dense = pd.DataFrame([dict(task=t, score=v) for t, v in [("a", .81), ("a", .81), ("b", .7), ("b", .7)]])
    difference, wins = transfer_to_full(tickets, dense)
    assert difference.loc["b", "a"] == pytest.approx(.09) and np.isnan(difference.loc["m", "b"])
    assert wins.to_numpy().tolist() == [[True, False], [True, False], [False, False]]
    assert not transfer_to_full(tickets, dense, "strict")[1].loc["a", "a"]
    own, margin = transfer_to_own(tickets)
    assert own.loc["a", "a"] == 0 and margin.to_dict() == {"a": 0, "b": 1, "m": 0}   # the source itself left out
    assert transfer(tickets).loc["m", "a"] == pytest.approx(.7)


def test_a_score_that_is_not_known_wins_nothing():
    assert all(map(np.isnan, spread([.8, float("nan")]))) and np.isnan(spread([float("nan")])[0])
    assert not winning([.8, .9], [float("nan"), .95]) and not winning([.8, float("nan")], [.9, .9])
