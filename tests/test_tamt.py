"""Mask training against a plain twin, finite differences, brute-force selection, and kill -9."""
import copy
import gc
import json
import os
import subprocess
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import warm
import torch.nn.functional as F
from datasets import Dataset
from hypothesis import given, settings as hypothesis_settings, strategies as st
from torch.func import functional_call
from transformers import BertConfig, BertForMaskedLM, RobertaConfig, RobertaForMaskedLM

import lottery_nb.tamt as tamt_module
from lottery_nb.files import BadInput
from lottery_nb.masks import Mask, hold
from lottery_nb.methods import find_ticket
from lottery_nb.spec import TicketSpec
from lottery_nb.tamt import (Cut, MaskSettings, MaskTraining, Scores, attention_term, binarise, block_ids, draw_batch, exact_cuts, head_parameters,
                             initial_scores, kd_term, mask_losses, masked_embedding, masked_forward, masked_linear, mlm_term, objective_losses,
                             pretraining_losses, start_mask, text_spec, token_marks, train_mask, training_fields)
from lottery_nb.tasks import fixed_masks
from lottery_nb.training import Diverged
from lottery_nb.weights import mlm_head, prunable

SIZE = dict(vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, max_position_embeddings=24, initializer_range=.1)
POOLS = ("encoder", "encoder+embeddings", "encoder+biases")


def with_biases(model):
    "A random model whose biases are not zero"
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"): p.normal_(0, .05)
    return model


def bert(**changes):
    torch.manual_seed(0)
    return with_biases(BertForMaskedLM(BertConfig(**SIZE | changes)))


def roberta(**changes):
    torch.manual_seed(0)
    return with_biases(RobertaForMaskedLM(RobertaConfig(**SIZE | dict(pad_token_id=1, bos_token_id=0, eos_token_id=2) | changes)))


class Words:
    "A tokenizer of numbers: what the library asks of one"
    mask_token, mask_token_id, pad_token_id, sep_token_id, all_special_ids = "[MASK]", 4, 0, 3, [0, 1, 2, 3, 4]

    def __len__(self): return SIZE["vocab_size"]
    def convert_tokens_to_ids(self, token): return self.mask_token_id


TEXT = torch.randint(5, 60, (64, 16), generator=torch.Generator().manual_seed(0))


def frozen(model, head=True):
    model.requires_grad_(False)
    for p in head_parameters(model).values(): p.requires_grad_(head)
    return model


def training(model, **settings):
    settings = MaskSettings(**dict(steps=50, batch_size=8) | settings)
    return MaskTraining(frozen(model, "mlm" in settings.objective).train(), TEXT, Words(), settings)


# selection


@hypothesis_settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(-4, 4), min_size=1, max_size=12), min_size=1, max_size=4), st.data())
def test_cuts_keep_exactly_so_many(values, data):
    "Against a stable sort; few distinct values, so that ties are everywhere"
    scores = {str(i): torch.tensor(row, dtype=torch.float32) / 100 for i, row in enumerate(values)}
    total = sum(map(len, values))
    keep, absolute = data.draw(st.integers(0, total)), data.draw(st.booleans())
    near, reach = Cut(data.draw(st.integers(-5, 5)) / 100, absolute=absolute), data.draw(st.sampled_from([0., .011, .05, float("inf")]))
    cuts = exact_cuts(scores, keep, near, reach)
    kept = torch.cat([binarise(scores[name], cuts[name]) for name in scores])
    flat = torch.cat(list(scores.values()))
    order = (flat.abs() if absolute else flat).argsort(descending=True, stable=True)
    assert kept.nonzero().flatten().tolist() == sorted(order[:keep].tolist())


def test_rows_are_binarised_like_the_whole():
    score = torch.randint(0, 3, (7, 5)).float()
    rows = torch.tensor([6, 0, 3])
    for ties in (None, 0, 11, 34, 35):
        assert torch.equal(binarise(score, Cut(1., ties), rows), binarise(score, Cut(1., ties))[rows])


def test_the_released_comparison_loses_ties():
    "D6: `>` prunes every score that equals the threshold; the tie rule keeps the count"
    score = torch.tensor([.02] * 5 + [.00] * 5)
    cut = exact_cuts({"s": score}, 3, Cut(.01))["s"]
    assert int(binarise(score, cut).sum()) == 3
    assert int(binarise(score, replace(cut, ties=0)).sum()) == 0


# gradients


def score_gradients(model, scores, batch, settings, plain):
    for p in scores.values.values(): p.grad = None
    torch.manual_seed(1)
    sum(objective_losses(model, scores, batch, settings, plain=plain).values()).backward()
    return {name: p.grad.clone() for name, p in scores.values.items()}


@pytest.mark.parametrize("make", [bert, roberta])
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("decoder", ["input", "both"])
@pytest.mark.parametrize("objective", ["mlm", "kd", "mlm+kd+attention"])
def test_fast_and_plain_paths_agree(make, pool, decoder, objective):
    model = make()
    if "attention" in objective: model.set_attn_implementation("eager")
    way = training(model, objective=objective, pool=pool, decoder=decoder)
    batch = draw_batch(TEXT, 0, 8, 0, Words())
    fast, plain = (score_gradients(way.model, way.scores, batch, way.settings, plain) for plain in (False, True))
    for name in fast:
        assert (fast[name] - plain[name]).abs().max() <= 1e-6, name
        assert fast[name].abs().max() > 0, name


@pytest.mark.parametrize("make", [bert, roberta])
def test_the_last_layer_at_masked_positions_gives_the_whole_layers_gradients(make):
    "Guard of `last_layer_at`: transformers' last layer computes its output token by token, behind `attention.output`"
    model = frozen(make(hidden_dropout_prob=0., attention_probs_dropout_prob=0.))
    scores = Scores(initial_scores(start_mask(prunable(model), .5)), .5)
    batch = draw_batch(TEXT, 0, 8, 0, Words())
    fast = score_gradients(model, scores, batch, MaskSettings(objective="mlm", sparsity=.5), False)
    for p in scores.values.values(): p.grad = None
    with masked_forward(model, scores, plain=True): model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]).loss.backward()
    assert max((fast[name] - p.grad).abs().max() for name, p in scores.values.items()) <= 1e-6


@pytest.mark.parametrize("pool", POOLS)
def test_fast_path_against_a_float64_twin(pool):
    way = training(bert(hidden_dropout_prob=0., attention_probs_dropout_prob=0.), objective="mlm+kd", pool=pool)
    twin = copy.deepcopy(way.model).double()
    double = Scores({name: p.detach().double() for name, p in way.scores.values.items()}, .7)
    double.cuts = {name: Cut(.01) for name in double.cuts}
    batch = draw_batch(TEXT, 0, 8, 0, Words())
    single, exact = score_gradients(way.model, way.scores, batch, way.settings, False), score_gradients(twin, double, batch, way.settings, True)
    assert max((single[name] - exact[name]).abs().max() for name in single) <= 1e-6


@pytest.mark.parametrize("objective", ["mlm", "kd"])
def test_gradients_against_finite_differences_of_the_relaxed_problem(objective):
    "dL/dS is the slope of L(M∘W) in M taken as real numbers (both sides of a tied embedding by `functional_call`: so the encoder pool here)"
    model = frozen(bert(hidden_dropout_prob=0., attention_probs_dropout_prob=0.).double().eval())
    scores = Scores({name: value.double() for name, value in initial_scores(start_mask(prunable(model), .5)).items()}, .5)
    batch, settings = draw_batch(TEXT, 0, 8, 0, Words()), MaskSettings(objective=objective)
    grads = score_gradients(model, scores, batch, settings, False)
    mask = {name: kept.double() for name, kept in scores.mask().items()}
    inputs = dict(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True)

    @torch.no_grad()
    def relaxed(real):
        weights = {name.removeprefix("bert."): prunable(model)[name] * m for name, m in real.items()}
        student, teacher = functional_call(model.bert, weights, kwargs=inputs), model.bert(**inputs)
        weight = batch | {"weight": batch["attention_mask"].double()}
        return (mlm_term(student, None, batch, mlm_head(model)) if objective == "mlm" else kd_term(student, teacher, weight, None)).item()

    generator = np.random.default_rng(0)
    for name in list(mask)[::3]:
        for _ in range(3):
            place, step = tuple(generator.integers(size) for size in mask[name].shape), 1e-5
            values = []
            for sign in (1, -1):
                moved = mask[name].clone()
                moved[place] += sign * step
                values.append(relaxed(mask | {name: moved}))
            assert abs((values[0] - values[1]) / (2 * step) - grads[name][place].item()) < 1e-8


def test_embedding_gradients_touch_only_words_of_the_batch():
    weight, score = torch.randn(50, 4), torch.randn(50, 4).requires_grad_()
    ids = torch.tensor([[3, 7], [7, 0]])
    masked_embedding(ids, weight, score, Cut(0.), padding=0).sum().backward()
    assert score.grad.abs().sum(1).nonzero().flatten().tolist() == [3, 7]


def test_decoder_side():
    "`input` leaves the tied decoder whole (as released), `both` equals a model whose embedding is pruned in place"
    model = frozen(bert().eval())
    scores = Scores(initial_scores(start_mask(prunable(model, "encoder+embeddings"), .5)), .5)
    held = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in prunable(held, "encoder+embeddings").items(): weight.mul_(scores.mask()[name])
        with masked_forward(model, scores, "both"): both = model(input_ids=TEXT[:4]).logits
        with masked_forward(model, scores, "input"): one = model(input_ids=TEXT[:4])
        assert torch.allclose(both, held(input_ids=TEXT[:4]).logits, atol=1e-6)
        assert not torch.allclose(one.logits, both, atol=1e-3)
        hidden = held.bert(input_ids=TEXT[:4]).last_hidden_state
        assert torch.allclose(one.logits, model.cls(hidden), atol=1e-5)


# training


@pytest.mark.parametrize("objective", ["mlm", "kd", "mlm+kd"])
@pytest.mark.parametrize("pool", POOLS)
def test_fast_and_plain_trajectories_agree(objective, pool):
    ways = [training(bert(hidden_dropout_prob=0.), objective=objective, pool=pool, decoder="both", learning_rate=1e-4) for _ in range(2)]
    for _ in range(5): ways[0].advance(); ways[1].advance(plain=True)
    for term in objective.split("+"):
        assert [row[term] for row in ways[0].history] == pytest.approx([row[term] for row in ways[1].history], abs=1e-5)


@pytest.mark.parametrize("scope", ["matrix", "global"])
@pytest.mark.parametrize("rank", ["signed", "absolute"])
def test_sparsity_is_exact_at_every_step(scope, rank):
    "With a learning rate at which scores cross the threshold from the first steps on"
    way = training(bert(), scope=scope, rank=rank, pool="encoder+embeddings", sparsity=.63, learning_rate=3e-3)
    sizes = {name: p.numel() for name, p in way.scores.values.items()}
    for _ in range(12):
        way.advance()
        way.scores.refresh(way.reach)
        counts = way.scores.mask().counts
        if scope == "matrix": assert counts == {name: round(.37 * n) for name, n in sizes.items()}
        assert sum(counts.values()) == (sum(round(.37 * n) for n in sizes.values()) if scope == "matrix" else round(.37 * sum(sizes.values())))
    assert way.scores.mask() != start_mask(prunable(way.model, "encoder+embeddings"), .63, "omp", scope)


def groups(mask, size): return [kept.reshape(-1, size).sum(1) for kept in mask.values()]


@pytest.mark.parametrize("scope, sparsity, pool", [("2:4", .5, "encoder"), ("1:4", .75, "encoder+embeddings"), ("3:8", .625, "encoder+biases")])
@pytest.mark.parametrize("rank", ["signed", "absolute"])
def test_a_pattern_is_exact_in_every_group_at_every_step(scope, sparsity, pool, rank):
    keep, size = map(int, scope.split(":"))
    way = training(bert(), scope=scope, rank=rank, pool=pool, sparsity=sparsity, learning_rate=3e-3)
    start = way.scores.mask()
    assert start == start_mask(prunable(way.model, pool), sparsity, "omp", scope)
    for _ in range(12):
        way.advance()
        for name, kept in way.scores.mask().items(): assert torch.equal(kept, binarise(way.scores.values[name], way.scores.cuts[name]))
        way.scores.refresh()
        assert all((kept == keep).all() for kept in groups(way.scores.mask(), size))
        for name, score in way.scores.values.items():   # brute force: a stable sort of each group
            key = (score.abs() if rank == "absolute" else score).detach().reshape(-1, size)
            best = key.sort(dim=1, descending=True, stable=True).indices[:, :keep]
            assert torch.equal(torch.zeros_like(key, dtype=torch.bool).scatter_(1, best, True).view_as(score), way.scores.mask()[name])
    assert way.scores.mask() != start


def test_a_pattern_trains_alike_fused_and_plain_and_resumes(tmp_path):
    settings = dict(scope="2:4", sparsity=.5, pool="encoder+embeddings", objective="mlm+kd", learning_rate=1e-3)
    ways = [training(bert(hidden_dropout_prob=0., attention_probs_dropout_prob=0.), **settings) for _ in range(2)]
    for _ in range(6): ways[0].advance(); ways[1].advance(plain=True)
    for term in ("mlm", "kd"): assert [row[term] for row in ways[0].history] == pytest.approx([row[term] for row in ways[1].history], abs=1e-5)
    ways[0].save(tmp_path/"checkpoint")
    again = training(bert(hidden_dropout_prob=0., attention_probs_dropout_prob=0.), **settings)
    again.restore(tmp_path/"checkpoint")
    for way in (ways[0], again): way.advance(); way.advance(); way.scores.refresh()
    assert again.scores.mask() == ways[0].scores.mask()
    assert all(torch.equal(score, again.scores.values[name]) for name, score in ways[0].scores.values.items())


def test_erk_shares_hold_in_mask_training():
    way = training(bert(), scope="erk", sparsity=.7, pool="encoder", learning_rate=3e-3)
    before = way.scores.mask().counts
    for _ in range(5): way.advance()
    way.scores.refresh()
    assert way.scores.mask().counts == before and way.scores.mask().kept == round(.3 * way.scores.total)


def test_what_a_pattern_cannot_have():
    with pytest.raises(BadInput, match="scope 2:4 keeps 2 of every 4 weights, so sparsity must be 0.5, got 0.7"): MaskSettings(scope="2:4")
    with pytest.raises(BadInput, match="scope 2:4 holds at every step, so refresh must be 1, got 100"): MaskSettings(scope="2:4", sparsity=.5, refresh=100)
    with pytest.raises(BadInput, match="scope 2:4 holds at every step, so mask_refresh must be 1"): TicketSpec(method="tamt-kd", scope="2:4", sparsity=.5, mask_refresh=100)
    with pytest.raises(BadInput, match="needs rows that 5 divides"): training(bert(), scope="1:5", sparsity=.8)


@pytest.mark.parametrize("rank", ["signed", "absolute"])
def test_the_window_changes_nothing(rank):
    "Thresholds sought near the last one and over everything are the same, step by step"
    ways = [training(bert(), learning_rate=2e-3, rank=rank, weight_decay=.01) for _ in range(2)]
    ways[1].__class__ = type("Everywhere", (MaskTraining,), {"reach": float("inf")})
    for _ in range(8):
        for way in ways: way.advance()
        assert ways[0].scores.cuts == ways[1].scores.cuts


def test_refresh_reproduces_the_drift():
    exact, drifting = (training(bert(), learning_rate=5e-3, refresh=n) for n in (1, 6))
    for _ in range(12): exact.advance(); drifting.advance()
    sparsities = [row["sparsity"] for row in drifting.history]
    assert len({row["sparsity"] for row in exact.history}) == 1
    assert sparsities[6] == exact.history[0]["sparsity"] != sparsities[5]


def test_weights_are_frozen_and_the_model_comes_back(tmp_path):
    model = bert().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state, flags = torch.get_rng_state(), [p.requires_grad for p in model.parameters()]
    result = train_mask(model, TEXT, Words(), MaskSettings(objective="mlm+kd+attention", steps=3, batch_size=8), tmp_path/"m")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (model.training, model.config._attn_implementation, [p.requires_grad for p in model.parameters()]) == (False, "sdpa", flags)
    assert torch.equal(torch.get_rng_state(), state)
    assert any(not torch.equal(value, before["cls." + name]) for name, value in result.head.items())
    assert all("forward" not in vars(module) for module in model.modules())


def tensors(): return [t for t in gc.get_objects() if type(t) in (torch.Tensor, torch.nn.Parameter)]


def test_extra_memory_is_scores_and_optimizer_state():
    "Tensors alive after a step beyond the model: S, two moments, and the same for the head"
    size = dict(hidden_size=64, intermediate_size=256)
    model = frozen(bert(**size))
    kept = {id(t) for t in tensors()}
    way = training(model, objective="mlm", pool="encoder+embeddings")
    way.advance(); way.advance()
    gc.collect()
    alive = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors() if id(t) not in kept}
    pool, head = (sum(4 * p.numel() for p in part.values()) for part in (prunable(model, "encoder+embeddings"), head_parameters(model)))
    assert sum(alive.values()) <= 3 * pool + 2 * head + 20_000


def test_kd_leaves_padding_out():
    "Padding changes neither loss nor gradient unless it is asked for"
    model = bert(hidden_dropout_prob=0., attention_probs_dropout_prob=0.)
    padded = F.pad(TEXT[:8], (0, 5))
    way = training(model, objective="kd")
    batch = lambda ids: dict(input_ids=ids, labels=torch.full_like(ids, -100)) | token_marks(ids, Words())
    losses = [objective_losses(model, way.scores, batch(ids), way.settings)["kd"].item() for ids in (TEXT[:8], padded)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    counted = objective_losses(model, way.scores, batch(padded), replace(way.settings, padding="in"))["kd"].item()
    assert abs(counted - losses[0]) > 1e-4


def test_teacher_mode():
    "B6: a teacher in training mode gives other targets each time; in evaluation mode the same"
    model = bert(hidden_dropout_prob=.3)
    way = training(model, objective="kd")
    model.eval()
    batch = dict(input_ids=TEXT[:8]) | token_marks(TEXT[:8], Words())
    losses = lambda mode: [objective_losses(model, way.scores, batch, replace(way.settings, teacher=mode))["kd"].item() for _ in range(2)]
    first, second = losses("eval")
    assert first == second and not model.training
    first, second = losses("train")
    assert first != second and not model.training


def test_another_teacher_is_what_is_imitated(tmp_path):
    model, teacher = bert().eval(), bert().eval()
    with torch.no_grad(): teacher.bert.encoder.layer[1].output.dense.weight.mul_(-1)
    settings = MaskSettings(objective="kd", steps=2, batch_size=8)
    own, other = (train_mask(model, TEXT, Words(), settings, tmp_path/name, teacher=t).history["kd"][0] for name, t in (("own", None), ("other", teacher)))
    assert other > own + .01
    with pytest.raises(BadInput, match="another mask training .teacher was None"): train_mask(model, TEXT, Words(), settings, tmp_path/"own", teacher=teacher)


@pytest.mark.parametrize("make, separator", [(bert, [3]), (roberta, [2, 2])])
def test_pairs_of_texts_keep_their_segments(make, separator):
    "A padded pair: segments and attention as the model's own forward pass has them; RoBERTa has one segment"
    class Tokens(Words): pad_token_id, sep_token_id = (0, 3) if make is bert else (1, 2)
    model, pad = make().eval(), Tokens.pad_token_id
    ids = torch.tensor([[2 if make is bert else 0, 7, 8, *separator, 9, separator[0], pad, pad][:8]])
    marks = token_marks(ids, Tokens())
    second = 3 + 1   # right behind the first separator
    assert marks["attention_mask"].tolist() == [[int(i != pad) for i in ids[0].tolist()]]
    assert marks["token_type_ids"].tolist() == [[int(i >= second and x != pad) for i, x in enumerate(ids[0].tolist())]]
    dense = Mask.ones_like(prunable(model))
    labels = torch.full_like(ids, -100); labels[0, 1] = 7
    dev = Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})
    segments = dict(token_type_ids=marks["token_type_ids"]) if make is bert else {}
    with torch.no_grad(): expected = model(input_ids=ids, attention_mask=marks["attention_mask"], labels=labels, **segments).loss.item()
    assert mask_losses(model, dense, dev, Tokens())["mlm_loss"] == pytest.approx(expected, abs=1e-5)


def test_a_batch_without_masked_tokens_is_harmless():
    way = training(bert(), batch_size=1)
    way.ids = torch.full((1, 16), 2)   # nothing but special tokens
    way.advance()
    assert way.history[0]["mlm"] == 0 and all(torch.isfinite(p).all() for p in way.scores.values.values())


def test_a_small_text_is_one_batch():
    way = training(bert(), batch_size=500)
    way.advance(); way.advance()
    assert way.step == 2


def test_start_from_a_given_mask(tmp_path):
    model = bert().eval()
    start = start_mask(prunable(model), .7, "random", seed=5)
    given = train_mask(model, TEXT, Words(), MaskSettings(steps=1, batch_size=8), tmp_path/"a", start=start)
    assert given.mask == start   # one step of 5e-5 cannot cross φ
    with pytest.raises(BadInput, match="is of another pool"):
        train_mask(model, TEXT, Words(), MaskSettings(steps=1, pool="encoder+embeddings"), tmp_path/"b", start=start)
    with pytest.raises(BadInput, match="another mask training .start was"): train_mask(model, TEXT, Words(), MaskSettings(steps=1, batch_size=8), tmp_path/"a")


def test_roberta_end_to_end(tmp_path):
    model = roberta().eval()
    text = TEXT.clamp(min=6)
    class Tokens(Words): pad_token_id = 1
    settings = MaskSettings(objective="mlm+kd", steps=12, batch_size=8, learning_rate=2e-3, pool="encoder+embeddings", save_at=(4,))
    result = train_mask(model, text, Tokens(), settings, tmp_path/"r")
    assert list(result.masks) == [4, 12]
    assert result.mask.densities() == pytest.approx(dict.fromkeys(result.mask, 0.3), abs=1e-3)
    losses = mask_losses(model, result.mask, text[:8], Tokens())
    assert losses["mlm_loss"] > 0 and 0 < losses["kd_loss"] < 2


# losses of any mask


@pytest.mark.parametrize("make", [bert, roberta])
@pytest.mark.parametrize("decoder", ["input", "both"])
def test_mask_losses_against_a_pruned_copy(make, decoder):
    class Tokens(Words): pad_token_id = 0 if make is bert else 1
    model = make().eval()
    text = TEXT[:20].clamp(min=6)
    pool = "encoder" if decoder == "input" else "encoder+embeddings"
    mask = start_mask(prunable(model, pool), .6)
    dev = fixed_masks(Dataset.from_dict({"input_ids": text.numpy()}), Tokens())
    losses = mask_losses(model, mask, dev, Tokens(), decoder=decoder, batch_size=7)
    pruned = copy.deepcopy(model)
    with torch.no_grad(), hold(pruned, mask):
        inputs, labels = (torch.tensor(np.array(dev[name])) for name in ("input_ids", "labels"))
        mlm = pruned(input_ids=inputs, labels=labels).loss.item()
        student, teacher = (net.base_model(input_ids=text, output_hidden_states=True).hidden_states[1:] for net in (pruned, model))
        kd = np.mean([(1 - F.cosine_similarity(s, t, dim=-1)).mean().item() for s, t in zip(student, teacher)])
    assert losses == pytest.approx(dict(mlm_loss=mlm, kd_loss=kd), abs=1e-5)
    assert mask_losses(model, mask, text, Tokens(), decoder=decoder) == pytest.approx(losses, abs=1e-5)   # the same fixed masks


def test_mask_losses_take_a_trained_head_and_tolerate_a_pooler():
    model = bert().eval()
    mask = start_mask(prunable(model), .6)
    more = Mask(dict(mask) | {"bert.pooler.dense.weight": torch.ones(32, 32, dtype=torch.bool)})
    assert mask_losses(model, more, TEXT[:8], Words()) == mask_losses(model, mask, TEXT[:8], Words())
    head = {name: torch.zeros_like(p) for name, p in head_parameters(model).items()}
    assert mask_losses(model, mask, TEXT[:8], Words(), head=head)["mlm_loss"] == pytest.approx(np.log(60), abs=1e-5)


def test_attention_term_is_zero_for_equal_maps():
    maps = torch.rand(2, 3, 4, 4).softmax(-1)
    output = type("Output", (), dict(attentions=(maps, maps)))()
    other = type("Output", (), dict(attentions=(maps.roll(1, -1), maps)))()
    batch = dict(weight=torch.ones(2, 4))
    assert attention_term(output, output, batch, None) == 0
    assert attention_term(output, other, batch, None).item() == pytest.approx(((maps - maps.roll(1, -1))**2).sum(-1).mean().item() / 2)


def test_bad_text():
    with pytest.raises(BadInput, match="at least one block"): block_ids(np.zeros((0, 8), int))
    with pytest.raises(BadInput, match="at least one block"): block_ids(np.zeros(8, int))


# half precision


@pytest.mark.parametrize("objective", ["mlm", "kd", "mlm+kd+attention"])
def test_bf16_trains_like_float32_with_scores_cuts_and_losses_in_float32(objective):
    quiet = dict(hidden_dropout_prob=0., attention_probs_dropout_prob=0.)
    settings = dict(objective=objective, pool="encoder+embeddings", learning_rate=1e-3)
    ways = [training(bert(**quiet), precision=precision, **settings) for precision in ("float32", "bf16")]
    if "attention" in objective:
        for way in ways: way.model.set_attn_implementation("eager")
    for way in ways: way.grads = seen_gradients(way)
    for _ in range(4):
        for way in ways: way.advance()
    for term in objective.split("+"):
        plain, half = ([row[term] for row in way.history] for way in ways)
        assert half == pytest.approx(plain, rel=.05, abs=2e-3)
    assert len({row["sparsity"] for row in ways[1].history}) == 1
    assert {p.dtype for p in ways[1].parameters.values()} == {torch.float32}
    flat = [torch.cat([way.grads[name].flatten() for name in ways[0].scores.values]) for way in ways]
    assert flat[1].dtype == torch.float32 and not torch.equal(*flat)   # half precision was at work
    assert torch.cosine_similarity(*flat, dim=0) > .98


def seen_gradients(way):
    "Gradients of the scores in the first step, as they arrive"
    found = {}
    def kept(p, name): found.setdefault(name, p.grad.clone())
    for name, score in way.scores.values.items(): score.register_post_accumulate_grad_hook(partial(kept, name=name))
    return found


def test_under_autocast_a_masked_product_is_in_bf16_both_ways():
    x, weight, score = torch.randn(6, 8).requires_grad_(), torch.randn(4, 8), torch.randn(4, 8).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16): y = masked_linear(x, weight, None, score, Cut(0.))
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    kept = (weight * (score.detach() >= 0)).bfloat16()
    assert torch.equal(x.grad, (torch.ones(6, 4).bfloat16() @ kept).float())
    assert torch.equal(score.grad, (torch.ones(4, 6).bfloat16() @ x.detach().bfloat16()).float() * weight)


def test_bf16_resumes_to_the_same_scores(tmp_path):
    ways = [training(bert(), objective="mlm+kd", learning_rate=1e-3, precision="bf16") for _ in range(2)]
    for _ in range(3): ways[0].advance()
    ways[0].save(tmp_path/"checkpoint"), ways[1].restore(tmp_path/"checkpoint")
    for way in ways: way.advance(); way.advance()
    assert ways[0].history == ways[1].history
    assert all(torch.equal(score, ways[1].scores.values[name]) for name, score in ways[0].scores.values.items())


def test_float32_is_what_stages_and_runs_were_called_before_there_was_a_choice():
    assert "precision" not in MaskSettings().key() and MaskSettings(precision="bf16").key()["precision"] == "bf16"
    plain, half = (TicketSpec(method="tamt-mlm", model="micro", **fields) for fields in ({}, dict(mask_precision="bf16")))
    assert "mask_precision" not in plain.identity() and plain.id != half.id
    assert training_fields(plain, text_spec(plain)) | {"precision": "bf16"} == training_fields(half, text_spec(half))
    with pytest.raises(BadInput, match="precision"): MaskSettings(precision="fp16")
    with pytest.raises(BadInput, match="mask_precision"): TicketSpec(method="tamt-mlm", mask_precision="half")
    with pytest.raises(BadInput, match="does not read mask_precision"): TicketSpec(method="omp", mask_precision="bf16")


def test_a_loss_that_left_the_numbers_is_named_by_its_step_when_the_next_begins():
    way = training(bert())
    way.advance()
    with torch.no_grad(): way.model.bert.embeddings.word_embeddings.weight.fill_(float("nan"))
    way.advance()
    with pytest.raises(Diverged, match=r"the mlm loss of mask-training step 2 of \d+ is nan"): way.advance()


def test_the_last_step_too_is_named_by_its_loss(tmp_path):
    model = bert()
    with torch.no_grad(): model.bert.encoder.layer[0].output.LayerNorm.weight.fill_(float("nan"))
    with pytest.raises(Diverged, match="the mlm loss of mask-training step 1 of 1 is nan"):
        train_mask(model, TEXT, Words(), MaskSettings(steps=1, batch_size=8), tmp_path/"m")


# kill -9


CHILD = """
import sys, torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from test_tamt import train
print("ready", flush=True)
train(sys.argv[1])
"""


def train(folder):
    settings = MaskSettings(objective="mlm+kd", steps=60, batch_size=8, save_at=(10, 30), learning_rate=1e-3, pool="encoder+embeddings", refresh=25)
    return train_mask(bert().eval(), TEXT, Words(), settings, folder, checkpoint_every=7)


def test_killed_training_gives_the_same_bytes(tmp_path):
    code = CHILD.format(tests=str(Path(__file__).parent))
    killed = subprocess.Popen([warm.command("python"), "-c", code, str(tmp_path/"killed")], stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert killed.stdout.readline() == "ready\n"
    while not (tmp_path/"killed.partial"/"checkpoint.safetensors").exists():
        time.sleep(.002)
        assert killed.poll() is None
    warm.kill(killed)
    assert not (tmp_path/"killed").exists()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(tmp_path/"killed"), train(tmp_path/"whole")
    torch.set_num_threads(threads)
    names = sorted(p.name for p in (tmp_path/"whole").iterdir())
    assert names == sorted(p.name for p in (tmp_path/"killed").iterdir()) and "mask-000030.safetensors" in names
    for name in names: assert (tmp_path/"whole"/name).read_bytes() == (tmp_path/"killed"/name).read_bytes(), name


# the command line


def test_a_run_by_mask_training(tiny_model, tiny_data, tmp_path, capsys, warm_python):
    "From words to a result with both losses; the neighbour at another step shares the training"
    from lottery_nb.cli import main
    text = tmp_path/"text.txt"
    text.write_text("the film was good a meal was poor\n" * 400)
    words = ["run", "ticket", "--task", str(tiny_data), "--model", str(tiny_model), "--text", str(text), "--max-steps", "3", "--runs", str(tmp_path/"runs"),
             "--sparsity", "0.5", "--scope", "matrix", "--mask-max-length", "16", "--json"]
    trained, lines = ["--method", "tamt-mlm+kd", "--mask-steps", "10"], []
    for extra in (trained, [*trained, "--mask-at", "4"], ["--method", "random", "--mask-seed", "3"]):
        assert main([*words, *extra]) == 0
        lines.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert all(line["mlm_loss"] > 0 and line["kd_loss"] > 0 and line["sparsity"] == pytest.approx(.5, abs=1e-3) for line in lines)
    assert len(list((tmp_path/"runs"/"stages").glob("tamt-*"))) == 1


@pytest.mark.parametrize("content, message", [(b"", "empty"), (bytes(range(256)) * 40, "text")])
def test_text_that_is_none(content, message, tiny_model, tiny_data, tmp_path, capsys, warm_python):
    from lottery_nb.cli import main
    (tmp_path/"text.txt").write_bytes(content)
    words = ["run", "ticket", "--task", str(tiny_data), "--model", str(tiny_model), "--text", str(tmp_path/"text.txt"), "--max-steps", "2", "--runs", str(tmp_path/"runs"),
             "--method", "tamt-mlm", "--mask-steps", "10"]
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_the_losses_of_a_mask_are_measured_once_for_all_who_retrain_it(tiny_model, tiny_data, tmp_path, monkeypatch):
    (tmp_path/"text.txt").write_text("the film was good the meal was fine\n" * 80)
    spec = TicketSpec(task=str(tiny_data), model=str(tiny_model), text=str(tmp_path/"text.txt"), method="omp", sparsity=.5, mask_max_length=16)
    ticket, calls, original = find_ticket(spec, tmp_path/"runs"), [], tamt_module.mask_losses

    def counted(*args, **options):
        calls.append(1)
        return original(*args, **options)

    monkeypatch.setattr(tamt_module, "mask_losses", counted)
    losses = [pretraining_losses(replace(spec, seed=seed), ticket, tmp_path/"runs") for seed in range(3)]
    assert losses[0] == losses[1] == losses[2] and len(calls) == 1
    other = find_ticket(replace(spec, sparsity=.7), tmp_path/"runs")
    assert pretraining_losses(spec, other, tmp_path/"runs") != losses[0] and len(calls) == 2
