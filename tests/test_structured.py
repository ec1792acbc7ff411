"""The pruning loops as functions of two callables: properties, an independent replay, and death at every measurement."""
import json
import shutil
import subprocess
import time
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import warm
from hypothesis import given, settings, strategies as st
from transformers import BertConfig, BertModel

from lottery_nb import structured
from lottery_nb.baseline import dense, target_spec, theta0
from lottery_nb.cli import main
from lottery_nb.compare import read_masks
from lottery_nb.files import BadInput, read_json
from lottery_nb.gates import Gates, Importance, gate, importance, normalised, smaller, weight_share
from lottery_nb.mpruning import compared_masks, masks_result, weight_search
from lottery_nb.scores import magnitude
from lottery_nb.select import topk_mask
from lottery_nb.spec import MagnitudeSpec, StructuredSpec
from lottery_nb.store import results
from lottery_nb.structured import (compared_gates, dev_batches, fine_tuned, first_importance, found_gates, gates_result, rule_score, search,
                                   search_steps)
from lottery_nb.subnetworks import (bad_gates, draw_entries, due, gates_mask, prune_gates, random_gates, remember, stages_of, super_bad, super_random, super_survivors,
                                    survival_shares, without_least)
from lottery_nb.tickets import Ticket
from lottery_nb.weights import prunable

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
    for _, n, rate in stages:
        debt = 1e-9
        while (n and heads.any()) or (rate and mlps.any()):
            debt += rate
            m, debt = int(debt), debt % 1
            if not heads.any() and not m: m = 1
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
    assert found.kept == replay(full, importance, score, threshold, stages_of(prune, full.heads.size, full.mlps.size, step, heads_step))
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
    counts = sum(draw_entries([np.ones(6, bool)], 2, rng).astype(int) for _ in range(6000))
    assert abs(counts - 2000).max() < 150


def test_released_schedule_explains_the_published_sizes(assets):
    "14 heads and one MLP a step, then 7 heads a step (D15): every published count of heads must be reachable"
    stages = {s: (h, m) for s, h, m in stages_of("heads_mlps", 144, 12, heads_step=.05)}
    assert stages == {"joint": (14, 1), "heads": (7, 0), "mlps": (0, 1)}
    reachable = {max(0, 144 - 14 * joint - 7 * later) for joint in range(12) for later in range(22)}
    masks = read_masks(assets/"prasanna2020"/"masks.json.gz")
    assert {int(g.heads.sum()) for seeds in masks.values() for g in seeds.values()} <= reachable


@given(st.integers(1, 24), st.integers(1, 16), st.floats(.02, 1))
def test_heads_and_mlps_are_closed_at_one_pace(layers, per_layer, step):
    "Of 12 MLPs one a step, as the paper; of 4 not one in four while heads go one in sixteen"
    (_, heads, rate), *_ = stages_of("heads_mlps", layers*per_layer, layers, step)
    closed = np.cumsum([due(rate, number) for number in range(1, 40)])
    for number, mlps in enumerate(closed, 1):
        if int(step*layers + 1e-9): assert mlps == number*int(step*layers + 1e-9)
        else: assert abs(mlps - min(1, heads/per_layer)*number) < 1 + 1e-6


# On a model: the tiny random BERT and the CSV of the fixtures.

def settings_of(model, data, **more):
    return dict(task=str(data), model=str(model), epochs=10, batch_size=8, learning_rate=5e-3, max_length=16) | more


@pytest.fixture(scope="module")
def spec(tiny_model, tiny_data): return StructuredSpec(**settings_of(tiny_model, tiny_data, step=.25, heads_step=.25))


@pytest.fixture(scope="module")
def root(tmp_path_factory): return tmp_path_factory.mktemp("runs")


def test_a_search_holds_its_promise(spec, root):
    model, found = fine_tuned(spec, root), found_gates(search(spec, root))
    with gate(model, *found): score = rule_score(spec, model)
    assert score >= .9 * rule_score(spec, model)
    steps = search_steps(search(spec, root))
    assert steps[steps.accepted].score.min() >= .9 * rule_score(spec, model)
    assert first_importance(search(spec, root)).heads.shape == (2, 2)


def test_a_killed_search_ends_with_the_same_bytes(spec, root, tmp_path, monkeypatch):
    expected = search(spec, root)
    shutil.copytree(dense(spec, root), tmp_path/"runs"/"stages"/dense(spec, root).name)
    left = iter(range(3))
    original = structured.judge

    def mortal(*args):
        if next(left, None) is None: raise KeyboardInterrupt
        return original(*args)
    monkeypatch.setattr(structured, "judge", mortal)
    with pytest.raises(KeyboardInterrupt): search(spec, tmp_path/"runs")
    monkeypatch.setattr(structured, "judge", original)
    again = search(spec, tmp_path/"runs")
    for path in expected.iterdir(): assert (again/path.name).read_bytes() == path.read_bytes(), path.name


def test_a_run_killed_with_kill_9_resumes_to_the_same_result(spec, root, tmp_path):
    code = "import sys, json; from lottery_nb.spec import make_spec; from lottery_nb.structured import compared_gates, gates_result\n" + (
           "spec = make_spec('structured', json.loads(sys.argv[1])); print(json.dumps(gates_result(spec, compared_gates(spec, sys.argv[2]), sys.argv[2]), sort_keys=True))")
    command = [warm.command("python"), "-c", code, json.dumps(asdict(spec)), str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(tmp_path.glob("stages/search-*")): time.sleep(.05)
    warm.kill(process)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    expected = gates_result(spec, compared_gates(spec, root), root)
    assert json.loads(done.stdout.splitlines()[-1]) == json.loads(json.dumps(expected))


@pytest.mark.parametrize("options", [dict(importance="as_released", draw="bernoulli", keep_bias=False), dict(importance="per_batch", prune="heads"), dict(prune="mlps", rule_metric="f1_macro"),
                                     dict(super_seeds=2, start="reinit", retrain_epochs=2.)], ids=str)
def test_released_and_other_readings_run(spec, root, options):
    other = replace(spec, **options)
    kinds = compared_gates(other, root)
    result = gates_result(other, kinds, root)
    assert set(kinds) == {"good", "random", "bad"} and 0 <= result["score"] <= 1 and result["majority"] == .5
    assert result["sparsity"] == pytest.approx(1 - weight_share(kinds["good"], 2.))


def test_a_retrained_subnetwork_is_the_gated_model_trained(spec, root):
    "Cutting changes nothing but the size: without dropout, a step of the cut model equals a step of the gated one"
    gates = Gates([[1, 0], [1, 1]], [0, 1])
    full = theta0(target_spec(replace(spec, dropout=0.)))
    small, batch = smaller(full, gates).train(), dev_batches(spec)[0]
    full.train()
    with gate(full, *gates): full(**batch).loss.backward()
    small(**batch).loss.backward()
    torch.testing.assert_close(small.classifier.weight.grad, full.classifier.weight.grad, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(small.base_model.embeddings.word_embeddings.weight.grad, full.base_model.embeddings.word_embeddings.weight.grad, atol=1e-6, rtol=1e-4)


def test_importance_of_the_dev_set_does_not_depend_on_batches(spec, root):
    model = fine_tuned(spec, root)
    one, many = (importance(model, dev_batches(spec, size)) for size in (100, 3))
    np.testing.assert_allclose(one.heads, many.heads, rtol=1e-4, atol=1e-9)


def test_magnitude_masks(tiny_model, tiny_data, root):
    spec = MagnitudeSpec(**settings_of(tiny_model, tiny_data, step=.3, pool="encoder+biases"))
    masks = compared_masks(spec, root)
    assert len({m.kept for m in masks.values()}) == 1 and (masks["good"] & masks["bad"]).kept == max(0, 2 * masks["good"].kept - masks["good"].total)
    result = masks_result(spec, masks, root)
    assert result["method"] == "m-pruning" and result["sparsity"] == pytest.approx(masks["good"].sparsity)
    capped = replace(spec, iterations=2, bad="largest")
    assert read_json(weight_search(capped, root)/"sparsity.json") <= .3
    assert (compared_masks(capped, root)["bad"] & compared_masks(capped, root)["good"]).kept == max(0, 2 * compared_masks(capped, root)["good"].kept - masks["good"].total)


@given(good_sets)
@settings(max_examples=25, deadline=None)
def test_gates_to_mask_and_back(gates):
    model = BertModel(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=3, num_attention_heads=4, intermediate_size=16))
    heads, mlps = survival_shares(gates_mask(model, gates), 4)
    assert (heads == gates.heads).all() and (mlps == gates.mlps).all()


def test_survival_shares_by_hand():
    model = BertModel(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=4, intermediate_size=16))
    mask = topk_mask(magnitude(prunable(model, "encoder+biases")), .5)
    heads, mlps = survival_shares(mask, 4)
    layer, head = "encoder.layer.1.attention", slice(4, 6)   # head 2: rows 4 and 5
    parts = [mask[f"{layer}.self.{n}.weight"][head] for n in ("query", "key", "value")] + [mask[f"{layer}.self.{n}.bias"][head] for n in ("query", "key", "value")] + [mask[f"{layer}.output.dense.weight"][:, head]]
    assert heads[1, 2] == pytest.approx(np.concatenate([p.flatten().numpy() for p in parts]).mean())
    parts = [mask[f"encoder.layer.0.{n}"] for n in ("intermediate.dense.weight", "intermediate.dense.bias", "output.dense.weight")]
    assert mlps[0] == pytest.approx(np.concatenate([p.flatten().numpy() for p in parts]).mean())


def test_templates_from_the_command_line(tiny_model, tiny_data, tmp_path, capsys, warm_python):
    "Two seeds of s-pruning, one run of m-pruning, their tickets, and the agreement of the seeds"
    words = [w for name, value in settings_of(tiny_model, tiny_data).items() for w in (f"--{name.replace('_', '-')}", str(value))]
    runs = ["--runs", str(tmp_path)]
    assert main(["run", "structured", *words, *runs]) == 0
    assert main(["agreement", str(tmp_path)]) == 2 and "at least two seeds" in capsys.readouterr().err
    assert main(["run", "structured", *words, "--seed", "1", *runs]) == 0 and main(["run", "magnitude", *words, *runs]) == 0
    capsys.readouterr()
    assert main(["agreement", str(tmp_path), "--draws", "20", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found[str(tiny_data)]["heads"]) == 2
    for result in map(read_json, tmp_path.glob("*/result.json")):
        ticket = Ticket.load(tmp_path/result["id"]/"ticket")
        assert ticket.mask.sparsity == pytest.approx(result["sparsity"]) and result["good_retrained"] == result["score"]
        if result["template"] == "structured": assert Gates.from_json(ticket.provenance["gates"]) == Gates.from_json(result["gates"]["good"])
    assert {"s-pruning", "m-pruning"} == set(results(tmp_path).method)
    assert main(["run", "structured", *words, "--threshold", "1.5", *runs]) == 2
