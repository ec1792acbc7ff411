"""The pruning loops as functions of two callables: properties, an independent replay, and death at every measurement."""
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from lottery_nb.compare import read_masks
from lottery_nb.files import BadInput
from lottery_nb.gates import Gates, Importance, normalised
from lottery_nb.structured import (bad_gates, draw, prune_gates, random_gates, remember, stages_of, super_bad, super_random, super_survivors, without_least)

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 5))


def world(shape, seed):
    "A made-up model: each gate has a worth and an interaction with its layer's MLP; importance is its share of the score"
    rng = np.random.default_rng(seed)
    heads, mlps = rng.random(shape), rng.random(shape[0])

    def score(gates): return float((gates.heads * heads * (1 + gates.mlps[:, None])).sum() + (gates.mlps * mlps).sum())

    def importance(gates): return Importance(heads * (1 + gates.mlps[:, None]), mlps + (gates.heads * heads).sum(1))

    return importance, score


def replay(gates, importance, score, threshold, stages):
    "The loop once more, in the plainest words: sort, close, compare"
    bar, heads, mlps = threshold * score(gates), gates.heads.copy(), gates.mlps.copy()
    for _, n, m in stages:
        while (n and heads.any()) or (m and mlps.any()):
            scaled = normalised(importance(Gates(heads, mlps)))
            new_heads, new_mlps = heads.copy(), mlps.copy()
            live = sorted((scaled.heads[i], i) for i in zip(*np.nonzero(heads)))
            for _, i in live[:n]: new_heads[i] = False
            for _, i in sorted((scaled.mlps[i], i) for i in np.flatnonzero(mlps))[:m]: new_mlps[i] = False
            if score(Gates(new_heads, new_mlps)) < bar: break
            heads, mlps = new_heads, new_mlps
    return Gates(heads, mlps)


@given(SHAPES, st.integers(0, 9999), st.sampled_from(["heads_mlps", "heads", "mlps"]), st.floats(.05, 1), st.floats(.05, .6), st.floats(.05, .6))
@settings(max_examples=150, deadline=None)
def test_the_loop_against_a_plain_replay(shape, seed, prune, threshold, step, heads_step):
    importance, score = world(shape, seed)
    full = Gates.full(*shape)
    found = prune_gates(full, importance, score, threshold, prune, step, heads_step)
    assert found.kept == replay(full, importance, score, threshold, stages_of(prune, full.heads.size, step, heads_step))
    assert found.score == score(found.kept) >= threshold * score(full)
    if prune == "heads": assert found.kept.mlps.all()
    if prune == "mlps": assert found.kept.heads.all()
    previous = full
    for step in found.steps:
        assert (step.kept.heads <= previous.heads).all() and (step.kept.mlps <= previous.mlps).all()
        assert step.accepted == (step.score >= found.bar)
        if step.accepted: previous = step.kept
    assert previous == found.kept


@given(st.integers(0, 9999), st.integers(0, 60))
@settings(max_examples=25, deadline=None)
def test_killed_at_any_measurement_it_ends_the_same(tmp_path_factory, seed, death):
    importance, score = world((3, 4), seed)
    folder, full, count = tmp_path_factory.mktemp("search"), Gates.full(3, 4), [0]
    expected = prune_gates(full, importance, score, step=.2)

    def mortal(function):
        def call(gates):
            count[0] += 1
            if count[0] == death: raise KeyboardInterrupt
            return function(gates)
        return call

    def attempt(): return prune_gates(full, remember(mortal(importance), folder/"i.json"), remember(mortal(score), folder/"s.json"), step=.2)
    try: found = attempt()
    except KeyboardInterrupt: found = attempt()
    assert found.kept == expected.kept and found.score == expected.score and [s.score for s in found.steps] == [s.score for s in expected.steps]
    before = (folder/"s.json").read_bytes()
    attempt()
    assert (folder/"s.json").read_bytes() == before


@pytest.mark.parametrize("full", [0.0, -.1])
def test_a_full_score_of_zero_or_less_follows_the_rule(full):
    "CoLA's Matthews correlation may be 0: then every score ≥ 0 holds and everything may close"
    found = prune_gates(Gates.full(2, 2), lambda g: Importance(np.ones((2, 2)), np.ones(2)), lambda g: full)
    assert found.kept.heads.any() == (full < 0)


@pytest.mark.parametrize("threshold", [0, -.1, 1.01, float("nan")])
def test_thresholds_outside_are_refused(threshold):
    with pytest.raises(BadInput, match="threshold must be in"): prune_gates(Gates.full(1, 1), None, lambda g: 1., threshold)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0., .25, .5, 1.])), min_size=1, max_size=20), st.integers(0, 25))
def test_closing_closes_exactly_the_least(pairs, count):
    open, values = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    left = without_least(open, values, count)
    closed = open & ~left
    assert closed.sum() == min(count, open.sum()) and not (left & ~open).any()
    if closed.any() and left.any(): assert values[closed].max() <= values[left].min()


good_sets = st.builds(lambda bits, mlps: Gates(np.array(bits).reshape(3, 4), mlps), st.lists(st.booleans(), min_size=12, max_size=12), st.lists(st.booleans(), min_size=3, max_size=3))


@given(good_sets, st.integers(0, 99))
def test_random_and_bad_have_the_size_of_good(good, seed):
    for other in (random_gates(good, seed), bad_gates(good, seed)): assert [g.sum() for g in other] == [g.sum() for g in good]
    for g, b in zip(good, bad_gates(good, seed)): assert (g & b).sum() == max(0, 2 * int(g.sum()) - g.size)
    assert bad_gates(good, seed) == bad_gates(good, seed)


@given(st.lists(good_sets, min_size=2, max_size=5), st.integers(0, 99))
def test_super_survivors_and_their_counterparts(gates, seed):
    survivors, worst, middle = super_survivors(gates), super_bad(gates, seed), super_random(gates, seed)
    for s, w, m, parts in zip(survivors, worst, middle, zip(*gates)):
        votes = sum(p.astype(int) for p in parts)
        assert s.sum() == w.sum() == m.sum() and (s == (votes == len(gates))).all()
        if w.any(): assert votes[w].sum() == np.sort(votes, axis=None)[:w.sum()].sum()
        neither = int((~(s | w)).sum())
        assert (m & (s | w)).sum() == max(0, int(m.sum()) - neither)


def test_draws_are_uniform():
    rng = np.random.default_rng(0)
    counts = sum(draw([np.ones(6, bool)], 2, rng).astype(int) for _ in range(6000))
    assert abs(counts - 2000).max() < 150


def test_released_schedule_explains_the_published_sizes(assets):
    "14 heads and one MLP a step, then 7 heads a step (D15): every published count of heads must be reachable"
    stages = {s: (h, m) for s, h, m in stages_of("heads_mlps", 144, heads_step=.05)}
    assert stages == {"joint": (14, 1), "heads": (7, 0), "mlps": (0, 1)}
    reachable = {max(0, 144 - 14 * joint - 7 * later) for joint in range(12) for later in range(22)}
    masks = read_masks(assets/"prasanna2020"/"masks.json.gz")
    assert {int(g.heads.sum()) for seeds in masks.values() for g in seeds.values()} <= reachable
