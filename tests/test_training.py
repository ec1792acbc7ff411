"""Training: against a hand-written loop, killed at every point, without pickles; evaluation against the plain computation."""
import os
import random
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import warm
from datasets import Dataset
from hypothesis import given, strategies as st
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import (BertConfig, BertForMaskedLM, BertForQuestionAnswering, BertForSequenceClassification, BertTokenizer, RobertaConfig,
                          RobertaForMaskedLM, Trainer,
                          get_linear_schedule_with_warmup)

from lottery_nb import training
from lottery_nb.files import BadInput
from lottery_nb.masks import Mask
from lottery_nb.spec import RunSpec
from lottery_nb.tasks import get_task
from lottery_nb.training import (PlainTrainer, by_length, encoded, evaluate, finetune, last_checkpoint, load_weights, mask_tokens, mlm_loss, predict,
                                 rate_share, repeatable, save_weights, settings, steps)
from lottery_nb.weights import prunable

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the a cat dog cow small old sleeps barks runs now well".split()
torch.set_num_threads(1)
TOKENIZER = BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)}, model_max_length=32)
SIZE = dict(vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_position_embeddings=32)
SST2, MLM = get_task("sst2"), get_task("mlm")


def sentences(n, seed):
    "Random sentences of several lengths; the label says whether the verb is `sleeps`"
    draw = random.Random(seed)
    rows = [" ".join(draw.choices(WORDS[5:12], k=draw.randint(1, 9)) + [draw.choice(WORDS[12:15])]) for _ in range(n)]
    return Dataset.from_dict({"text": rows, "label": [int("sleeps" in row) for row in rows]})


DATA = {"train": sentences(75, 0), "dev": sentences(41, 1)}
SPEC = RunSpec(task="sst2", batch_size=8, epochs=3, learning_rate=3e-3, warmup=.1, max_length=16)   # 10 steps an epoch, the last of 3 examples
BY_LENGTH = replace(SPEC, batches="length")
MLM_SPEC = RunSpec(task="mlm", batch_size=4, epochs=3, learning_rate=3e-3, warmup=.1, max_length=16)


def new_net(kind=BertForSequenceClassification, dropout=.1, **options):
    "The same random network every time"
    torch.manual_seed(0)
    return kind(BertConfig(**SIZE, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, **options)).eval()


def half(net): return Mask({name: torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < .5 for name, weight in prunable(net, "encoder").items()})
def weights(net): return {name: weight.detach().clone() for name, weight in net.named_parameters()}
def same(a, b): return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def bomb(net, passes):
    "Let a network die after so many forward passes"
    left = iter(range(passes))
    def hook(module, inputs):
        if next(left, None) is None: raise RuntimeError("killed")
    net.register_forward_pre_hook(hook)
    return net


# Against a loop written by hand

@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("warmup", [0., .25])
def test_equals_a_plain_loop(tmp_path, masked, warmup):
    "One batch an epoch, so that order does not matter: AdamW, linear line, clipping at norm 1, gradients masked before the clip"
    spec = RunSpec(task="sst2", batch_size=75, epochs=12, learning_rate=1e-2, warmup=warmup, max_length=16)
    net, twin = new_net(dropout=0.), new_net(dropout=0.)
    mask = half(net) if masked else None
    finetune(net, SST2, DATA, TOKENIZER, spec, tmp_path, mask=mask)
    batch = TOKENIZER(list(DATA["train"]["text"]), padding=True, return_tensors="pt") | {"labels": torch.tensor(list(DATA["train"]["label"]))}
    optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-2, betas=(.9, .999), eps=1e-8, weight_decay=0.)
    line = get_linear_schedule_with_warmup(optimizer, int(warmup*12), 12)
    kept = {name: mask[name] for name in mask} if masked else {}
    named = dict(twin.named_parameters())
    for name, keep in kept.items(): named[name].data *= keep
    for _ in range(12):
        optimizer.zero_grad()
        twin(**batch).loss.backward()
        for name, keep in kept.items(): named[name].grad *= keep
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.)
        optimizer.step(); line.step()
        for name, keep in kept.items(): named[name].data *= keep
    assert max((a - b).abs().max().item() for a, b in zip(net.parameters(), twin.parameters())) < 2e-5


@given(st.integers(1, 200), st.integers(1, 40), st.floats(.1, 5))
def test_steps(n, batch, epochs):
    count = steps(RunSpec(batch_size=batch, epochs=epochs), n)
    per_epoch = len(range(0, n, batch))
    assert count - 1 < epochs*per_epoch <= count
    assert steps(RunSpec(batch_size=batch, epochs=epochs, max_steps=3), n) == 3


@given(st.integers(1, 300), st.floats(0, .9))
def test_the_line_is_transformers_line(total, warmup):
    model = torch.nn.Linear(1, 1)
    rising = round(warmup*total)
    line = get_linear_schedule_with_warmup(torch.optim.SGD(model.parameters(), lr=1.), rising, total)
    for t in range(0, total + 1, max(1, total//7)):
        assert rate_share(t, total, rising/total) == pytest.approx(line.lr_lambdas[0](t), abs=1e-9)


# The same bytes

@pytest.mark.parametrize("spec", [SPEC, BY_LENGTH], ids=["shuffled", "length"])
def test_the_same_spec_gives_the_same_bytes(tmp_path, spec):
    nets = [new_net() for _ in range(4)]
    runs = []
    for i, net in enumerate(nets):
        torch.manual_seed(i); np.random.seed(i); random.seed(i)
        runs.append(finetune(net, SST2, DATA, TOKENIZER, spec, tmp_path/str(i), order=i//2))
    assert same(nets[0], nets[1]) and runs[0].history.equals(runs[1].history)
    assert same(nets[2], nets[3]) and not same(nets[0], nets[2])   # another round sees another order


@pytest.mark.parametrize("spec", [SPEC, BY_LENGTH], ids=["shuffled", "length"])
@pytest.mark.parametrize("passes", [1, 9, 10, 11, 21])
def test_resume_after_any_step(tmp_path, passes, spec):
    "Within an epoch, at its end, and just after"
    whole, torn, resumed = new_net(), new_net(), new_net()
    mask = half(whole)
    expected = finetune(whole, SST2, DATA, TOKENIZER, spec, tmp_path/"whole", mask=mask)
    with pytest.raises(RuntimeError, match="killed"): finetune(bomb(torn, passes), SST2, DATA, TOKENIZER, spec, tmp_path/"torn", mask=mask, every=0)
    assert len(list((tmp_path/"torn").glob("checkpoint-*"))) == min(passes, 2)
    assert all(torch.equal(weight[~mask[name]], torch.zeros_like(weight[~mask[name]])) for name, weight in prunable(torn, "encoder").items())
    run = finetune(resumed, SST2, DATA, TOKENIZER, spec, tmp_path/"torn", mask=mask)
    assert same(whole, resumed) and run.history.equals(expected.history)
    assert not [path.name for path in (tmp_path/"torn").iterdir() if not path.name.startswith(".")]


@pytest.mark.parametrize("passes", [8])
def test_mlm_resumes_with_the_same_masks(tmp_path, passes):
    whole, torn, resumed = (new_net(BertForMaskedLM) for _ in range(3))
    finetune(whole, MLM, DATA, TOKENIZER, MLM_SPEC, tmp_path/"whole")
    with pytest.raises(RuntimeError, match="killed"): finetune(bomb(torn, passes), MLM, DATA, TOKENIZER, MLM_SPEC, tmp_path/"torn", every=0)
    finetune(resumed, MLM, DATA, TOKENIZER, MLM_SPEC, tmp_path/"torn")
    assert same(whole, resumed)


CHILD = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_training import *
net = new_net()
finetune(net, SST2, DATA, TOKENIZER, RunSpec(task="sst2", batch_size=8, max_steps=100000, learning_rate=1e-3, max_length=16, batches=sys.argv[3]), sys.argv[2], mask=half(net), every=0)
"""


@pytest.mark.parametrize("batches", ["shuffled", "length"])
def test_kill_dash_nine(tmp_path, monkeypatch, batches):
    "Another process is killed at some step of 60; this one goes on and ends where an uninterrupted training ends"
    monkeypatch.setattr(training, "HISTORY_LINES", 10**9)
    code = CHILD.replace("max_steps=100000", "max_steps=60").replace("net = new_net()", "training.HISTORY_LINES = 10**9\nnet = bomb_slow(new_net())")
    child = subprocess.Popen([warm.command("python"), "-c", code, str(Path(__file__).parent), str(tmp_path/"torn"), batches], env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        wait_for(lambda: any((path/"checksums.json").exists() for path in (tmp_path/"torn").glob("checkpoint-1?")), child)
    finally:
        warm.kill(child)
    spec = RunSpec(task="sst2", batch_size=8, max_steps=60, learning_rate=1e-3, max_length=16, batches=batches)
    whole, resumed = new_net(), new_net()
    expected = finetune(whole, SST2, DATA, TOKENIZER, spec, tmp_path/"whole", mask=half(whole))
    run = finetune(resumed, SST2, DATA, TOKENIZER, spec, tmp_path/"torn", mask=half(resumed))
    assert same(whole, resumed) and run.history.equals(expected.history)


def bomb_slow(net):
    "A network that takes its time, so that a kill finds it at work"
    net.register_forward_pre_hook(lambda module, inputs: time.sleep(.02))
    return net


def wait_for(condition, child, seconds=120):
    "Wait until a condition holds while a process lives"
    end = time.monotonic() + seconds
    while not condition():
        assert child.poll() is None and time.monotonic() < end, "the other process ended or took too long"
        time.sleep(.01)


def test_torn_and_damaged_checkpoints_are_passed_over(tmp_path):
    whole, resumed = new_net(), new_net()
    finetune(whole, SST2, DATA, TOKENIZER, SPEC, tmp_path/"whole")
    with pytest.raises(RuntimeError): finetune(bomb(new_net(), 5), SST2, DATA, TOKENIZER, SPEC, tmp_path/"torn", every=0)
    assert Path(last_checkpoint(tmp_path/"torn")).name == "checkpoint-5"
    file = tmp_path/"torn"/"checkpoint-5"/"optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    (tmp_path/"torn"/"checkpoint-6").mkdir()
    assert Path(last_checkpoint(tmp_path/"torn")).name == "checkpoint-4"
    finetune(resumed, SST2, DATA, TOKENIZER, SPEC, tmp_path/"torn")
    assert same(whole, resumed)


def test_no_pickles(tmp_path, monkeypatch):
    "Nothing is pickled or unpickled, and no file of a checkpoint is anything but JSON or safetensors"
    def refuse(*_, **__): raise AssertionError("pickle")
    monkeypatch.setattr(torch, "save", refuse); monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(RuntimeError, match="killed"): finetune(bomb(new_net(), 12), SST2, DATA, TOKENIZER, SPEC, tmp_path, every=0)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files if not path.name.endswith(".lock")} == {".json", ".safetensors"}
    finetune(new_net(), SST2, DATA, TOKENIZER, SPEC, tmp_path)


def test_guard_the_trainer_still_saves_by_the_methods_we_replace():
    for name, value in vars(PlainTrainer).items():
        if callable(value) and not name.startswith("__"): assert callable(getattr(Trainer, name)), name
    import inspect
    source = inspect.getsource(Trainer)
    writers = {name for name, value in vars(Trainer).items() if callable(value) and "torch.save(" in inspect.getsource(value)} - {"_tune_save_checkpoint", "_push_from_checkpoint"}
    assert "torch.save(" in source and writers <= set(vars(PlainTrainer)), writers - set(vars(PlainTrainer))


def test_the_scaler_of_float16_is_kept(tmp_path):
    trainer = PlainTrainer(new_net(), settings(SPEC, tmp_path, 3, 0))
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1234.)
    trainer._save_scaler(tmp_path)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
    trainer._load_scaler(tmp_path)
    assert trainer.accelerator.scaler.get_scale() == 1234.
    trainer._load_scaler(None)


def test_no_checkpoint_where_none_is_due(tmp_path, monkeypatch):
    monkeypatch.setattr(PlainTrainer, "_save_checkpoint", lambda *_: pytest.fail("saved"))
    finetune(new_net(), SST2, DATA, TOKENIZER, SPEC, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_history_is_short_and_aligned_with_checkpoints(tmp_path):
    spec = RunSpec(task="sst2", batch_size=1, max_steps=250, learning_rate=1e-3, max_length=16)
    whole, resumed = new_net(), new_net()
    expected = finetune(whole, SST2, DATA, TOKENIZER, spec, tmp_path/"whole")
    assert len(expected.history) == 83 and expected.history.step.is_monotonic_increasing
    with pytest.raises(RuntimeError): finetune(bomb(new_net(), 20), SST2, DATA, TOKENIZER, spec, tmp_path/"torn", every=0)
    assert finetune(resumed, SST2, DATA, TOKENIZER, spec, tmp_path/"torn").history.equals(expected.history)
    assert same(whole, resumed)


# Batches by length

@given(st.lists(st.integers(1, 60), min_size=1, max_size=400), st.integers(1, 40), st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_an_epoch_by_length_has_every_example_once(lengths, size, seed, epoch):
    order = by_length(lengths, size, seed, epoch)
    assert sorted(order) == list(range(len(lengths))) and by_length(lengths, size, seed, epoch) == order


def padding(order, lengths, size):
    "Share of an epoch's tokens that is padding"
    whole = sum(len(rows) * max(lengths[row] for row in rows) for rows in (order[i:i + size] for i in range(0, len(order), size)))
    return 1 - sum(lengths) / whole


@given(st.integers(0, 99))
def test_batches_by_length_are_padded_less_and_come_in_no_order(seed):
    "On lengths like those of single sentences: a long tail, most of them short"
    draw = np.random.default_rng(seed)
    lengths = np.clip(draw.lognormal(2.2, .8, 4000).round(), 3, 60).astype(int).tolist()
    order = by_length(lengths, 32, seed, 0)
    assert padding(order, lengths, 32) < .1 < .5 < padding(draw.permutation(4000).tolist(), lengths, 32)
    longest = np.array([max(lengths[row] for row in order[i:i + 32]) for i in range(0, 4000, 32)])
    assert abs(np.corrcoef(longest, np.arange(125))[0, 1]) < .4


def test_a_training_by_length_sees_every_example_once_an_epoch(tmp_path, monkeypatch):
    "Other batches than those of shuffled training, with fewer tokens; MLM is left as it was"
    seen = {}
    def watch(name):
        def hook(module, args, inputs): seen.setdefault(name, []).append(inputs["input_ids"])
        net = new_net()
        net.register_forward_pre_hook(hook, with_kwargs=True)
        return net
    finetune(watch("shuffled"), SST2, DATA, TOKENIZER, SPEC, tmp_path/"shuffled")
    finetune(watch("length"), SST2, DATA, TOKENIZER, BY_LENGTH, tmp_path/"length")
    rows = {name: [[tuple(ids[ids != 0].tolist()) for batch in batches[e:e + 10] for ids in batch] for e in (0, 10, 20)] for name, batches in seen.items()}
    expected = sorted(tuple(ids) for ids in encoded(SPEC, SST2, DATA, TOKENIZER, "train")["input_ids"])
    assert all(sorted(epoch) == expected for epochs in rows.values() for epoch in epochs)
    assert len({tuple(epoch) for epochs in rows.values() for epoch in epochs}) == 6
    tokens = {name: sum(batch.numel() for batch in batches) for name, batches in seen.items()}
    assert tokens["length"] < .9 * tokens["shuffled"]
    assert RunSpec(task="mlm", batches="length").id == RunSpec(task="mlm").id


# Pieces of a line

def test_horizon_of_the_whole_run(tmp_path):
    "D2: three rounds on one line; the rate goes on where the last round left it"
    spec = RunSpec(task="sst2", batch_size=8, epochs=1, learning_rate=1e-3, warmup=0, max_length=16)
    rates = [finetune(new_net(), SST2, DATA, TOKENIZER, spec, tmp_path/str(r), lr_offset=10*r, lr_total=30, order=r).history.learning_rate for r in range(3)]
    assert np.allclose(np.concatenate(rates), 1e-3*(30 - np.arange(30))/30)


def test_refusals(tmp_path):
    with pytest.raises(BadInput, match="the training set is empty"): steps(SPEC, 0)
    small = new_net(); small.config.max_position_embeddings = 10
    with pytest.raises(BadInput, match="max_length must be at most 10"): finetune(small, SST2, DATA, TOKENIZER, SPEC, tmp_path)
    with pytest.raises(BadInput, match="does not hold the weights of this BertForMaskedLM"): load_weights(new_net(BertForMaskedLM), save_weights(new_net(), tmp_path/"w"))
    (tmp_path/"w").write_bytes((tmp_path/"w").read_bytes()[:100])
    with pytest.raises(BadInput, match="w cannot be read"): load_weights(new_net(), tmp_path/"w")


@pytest.mark.parametrize("kind", [BertForSequenceClassification, BertForMaskedLM])
def test_weights_survive_their_file(tmp_path, kind):
    net = new_net(kind)
    other = kind(net.config)
    load_weights(other, save_weights(net, tmp_path/"w"))
    assert same(net, other)
    first = (tmp_path/"w").read_bytes()
    assert save_weights(other, tmp_path/"v").read_bytes() == first


def test_the_model_comes_back_plain(tmp_path, monkeypatch):
    "Mixed precision wraps the forward pass while training; nothing of it stays, nor gradients, nor hooks"
    monkeypatch.setattr(training, "precision", lambda: {"bf16": True, "use_cpu": True})
    net = new_net()
    attributes, kinds = set(vars(net)), []
    net.bert.pooler.dense.register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))
    for again in "ab":   # a second training is mixed too
        finetune(net, SST2, DATA, TOKENIZER, SPEC, tmp_path/again, mask=half(net))
        assert kinds == [torch.bfloat16]*30
        kinds.clear()
    assert set(vars(net)) == attributes and net(torch.tensor([[2, 5, 3]])).logits.dtype == torch.float32
    assert not net.training and all(weight.grad is None for weight in net.parameters()) and type(net) is BertForSequenceClassification
    assert not any(weight._post_accumulate_grad_hooks for weight in net.parameters())
    before = weights(net)
    finetune(net, SST2, DATA, TOKENIZER, SPEC, tmp_path/"free")
    assert any((weight[before[name] == 0] != 0).any() for name, weight in prunable(net, "encoder").items())   # free again


def test_precision_of_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for supported, name in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True, supported=supported: supported)
        assert training.precision() == {name: True}


def test_repeatable_restores():
    torch.use_deterministic_algorithms(True)
    with repeatable(): assert torch.are_deterministic_algorithms_enabled()
    assert torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    with pytest.raises(KeyError):
        with repeatable(): raise KeyError
    assert not torch.are_deterministic_algorithms_enabled()


def test_training_prints_nothing_where_there_is_no_terminal(tmp_path, capfd):
    finetune(new_net(), SST2, DATA, TOKENIZER, SPEC, tmp_path)
    evaluate(new_net(), SST2, DATA, TOKENIZER, SPEC)
    assert "".join(capfd.readouterr()) == ""


# MLM

@pytest.mark.parametrize("kind, config", [(BertForMaskedLM, BertConfig(**SIZE)), (RobertaForMaskedLM, RobertaConfig(**SIZE | dict(max_position_embeddings=40), pad_token_id=1))],
                         ids=["bert", "roberta"])
def test_mlm_loss_and_gradients_are_the_usual_ones(kind, config):
    torch.manual_seed(0)
    net = kind(config).eval()
    ids = torch.randint(5, len(WORDS), (6, 20))
    labels = torch.where(torch.rand(6, 20) < .3, torch.randint(5, len(WORDS), (6, 20)), -100)
    attention = (torch.arange(20) < torch.randint(8, 20, (6, 1))).long()
    results = []
    for loss in (lambda: mlm_loss(net, {"input_ids": ids, "labels": labels, "attention_mask": attention}), lambda: net(input_ids=ids, labels=labels, attention_mask=attention).loss):
        net.zero_grad()
        made = loss(); made.backward()
        results.append((made.item(), {name: weight.grad.clone() for name, weight in net.named_parameters() if weight.grad is not None}))
    (ours, gradients), (usual, expected) = results
    assert ours == pytest.approx(usual, abs=1e-6) and gradients.keys() == expected.keys()
    assert max((gradients[name] - expected[name]).abs().max().item() for name in expected) < 1e-6
    assert net(ids).logits.shape == (6, 20, len(WORDS))   # the hook is gone


def test_mlm_masks():
    ids = torch.cat([torch.full((400, 1), 2), torch.randint(5, len(WORDS), (400, 30)), torch.full((400, 1), 3), torch.zeros(400, 4, dtype=torch.long)], 1)
    masked, labels = mask_tokens(ids, TOKENIZER, 0, 0)
    chosen = labels != -100
    assert torch.equal(labels[chosen], ids[chosen]) and torch.equal(masked[~chosen], ids[~chosen])
    assert not chosen[ids < 5].any()   # special tokens and padding are never predicted
    assert abs(chosen[:, 1:31].float().mean() - .15) < .01
    assert abs((masked[chosen] == 4).float().mean() - .8) < .02
    assert abs((masked[chosen] == ids[chosen]).float().mean() - .1 - .1/len(WORDS)) < .02
    torch.manual_seed(5); state = torch.get_rng_state()
    assert torch.equal(mask_tokens(ids, TOKENIZER, 0, 0)[0], masked) and torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(mask_tokens(ids, TOKENIZER, 1, 0)[0], masked)


def test_mlm_training_never_forms_all_logits(tmp_path):
    net, shapes = new_net(BertForMaskedLM), []
    net.cls.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    finetune(net, MLM, DATA, TOKENIZER, MLM_SPEC, tmp_path)
    evaluate(net, MLM, DATA, TOKENIZER, MLM_SPEC)
    assert {len(shape) for shape in shapes} == {2} and max(shape[0] for shape in shapes) < 32*16/2


def test_mlm_evaluation_is_the_plain_computation():
    net = new_net(BertForMaskedLM)
    features = encoded(MLM_SPEC, MLM, DATA, TOKENIZER, "dev")
    ids, labels = torch.tensor(list(features["input_ids"])), torch.tensor(list(features["labels"]))
    with torch.no_grad(): logits = net(ids).logits
    scores = evaluate(net, MLM, DATA, TOKENIZER, MLM_SPEC)
    assert scores["loss"] == pytest.approx(cross_entropy(logits.flatten(0, 1), labels.flatten()).item(), abs=1e-5)
    assert scores["accuracy"] == pytest.approx((logits.argmax(-1) == labels)[labels != -100].float().mean().item())


# Evaluation

def test_predictions_do_not_depend_on_the_batch():
    net = new_net()
    made = predict(net, SST2, encoded(SPEC, SST2, DATA, TOKENIZER, "dev"), TOKENIZER)
    with torch.no_grad(): alone = torch.cat([net(**TOKENIZER(text, return_tensors="pt")).logits for text in DATA["dev"]["text"]])
    assert np.allclose(made, alone.numpy(), atol=1e-5)
    assert evaluate(net, SST2, DATA, TOKENIZER, SPEC) == {"accuracy": float((alone.argmax(-1).numpy() == np.array(list(DATA["dev"]["label"]))).mean())}


def test_matched_and_mismatched_have_their_own_names():
    task = get_task("mnli")
    rows = lambda n, seed: sentences(n, seed).map(lambda row: {"text_pair": "the cat sleeps"})
    data = {"train": rows(9, 0), "dev": rows(20, 1), "dev_mm": rows(30, 2)}
    spec = RunSpec(task="mnli", max_length=32)
    net = new_net(num_labels=3)
    scores = evaluate(net, task, data, TOKENIZER, spec)
    assert list(scores) == ["accuracy", "accuracy_mm"]
    swapped = evaluate(net, task, data | {"dev": data["dev_mm"], "dev_mm": data["dev"]}, TOKENIZER, spec)
    assert (swapped["accuracy"], swapped["accuracy_mm"]) == (scores["accuracy_mm"], scores["accuracy"])


def test_squad_trains_and_is_scored(tmp_path):
    "Find the verb: windows, spans and the n-best search together"
    task, draw = get_task("squad"), random.Random(0)
    def rows(n):
        made = []
        for i in range(n):
            words = draw.choices(WORDS[5:12], k=draw.randint(4, 30))
            place = draw.randrange(len(words)); words[place] = draw.choice(WORDS[12:15])
            made.append({"id": str(i), "text": "now", "text_pair": " ".join(words), "label": {"text": [words[place]], "answer_start": [len(" ".join(words[:place] + [""]))]}})
        return Dataset.from_list(made)
    data = {"train": rows(120), "dev": rows(40)}
    spec = RunSpec(task="squad", batch_size=16, epochs=20, learning_rate=5e-3, max_length=24)
    net = new_net(BertForQuestionAnswering, dropout=0.)
    before = evaluate(net, task, data, TOKENIZER, spec)
    finetune(net, task, data, TOKENIZER, spec, tmp_path)
    after = evaluate(net, task, data, TOKENIZER, spec)
    assert list(after) == ["f1", "exact_match"] and after["exact_match"] > .9 > .5 > before["exact_match"]


def test_regression_is_scored():
    task = get_task("stsb")
    data = {split: part.map(lambda row: {"label": float(row["label"])}).map(lambda row: {"text_pair": row["text"]}) for split, part in DATA.items()}
    scores = evaluate(new_net(num_labels=1, problem_type="regression"), task, data, TOKENIZER, RunSpec(task="stsb", max_length=32))
    assert list(scores) == ["pearson", "spearman", "corr"] and all(abs(value) <= 1 for value in scores.values())


def test_features_are_encoded_once_and_forgotten():
    data = {"train": sentences(5, 0)}
    first = encoded(SPEC, SST2, data, TOKENIZER, "train")
    assert encoded(SPEC, SST2, data, TOKENIZER, "train") is first
    assert encoded(RunSpec(task="sst2", max_length=4), SST2, data, TOKENIZER, "train") is not first
    size = len(training.ENCODED)
    del data
    import gc; gc.collect()
    assert len(training.ENCODED) == size - 1


def test_real_input(assets, tmp_path):
    "A few steps on real English with a real pre-trained model"
    from lottery_nb.models import load_model, load_tokenizer
    from lottery_nb.tasks import load_data
    spec = RunSpec(task="sst2", model=str(assets/"models"/"wiki-bert-mini"), data_dir=str(assets/"glue_data"), max_train=320, max_eval=64, epochs=1, max_length=32, learning_rate=5e-4)
    tokenizer, data, net = load_tokenizer(spec.model), load_data(spec), load_model(spec.model, SST2, spec.seed, spec.dropout)
    run = finetune(net, SST2, data, tokenizer, spec, tmp_path)
    assert run.steps == 10 and run.history.loss.iloc[-3:].mean() < run.history.loss.iloc[:3].mean() + .1
    assert .3 < evaluate(net, SST2, data, tokenizer, spec)["accuracy"] <= 1


# trainings that left the numbers


@pytest.mark.parametrize("method", ["omp", "imp", "tamt-kd", "tamt-mlm"])
def test_a_training_that_diverges_fails_and_leaves_no_result(method, tiny_model, tiny_data, tmp_path, capsys, warm_python):
    "A loss that is no number was reported as the accuracy of class 0"
    from lottery_nb.cli import main
    weights = load_file(tiny_model/"model.safetensors")
    shutil.copytree(tiny_model, tmp_path/"bert")
    save_file({name: weight * 1e38 if "intermediate" in name else weight for name, weight in weights.items()}, tmp_path/"bert"/"model.safetensors", metadata={"format": "pt"})
    (tmp_path/"text.txt").write_text("the film was good a meal was poor\n" * 400)
    words = ["run", "ticket", "--task", str(tiny_data), "--model", str(tmp_path/"bert"), "--text", str(tmp_path/"text.txt"), "--max-steps", "20", "--max-length", "16",
             "--sparsity", "0.2", "--method", method, "--runs", str(tmp_path/"runs")]
    assert main([*words, *(["--mask-steps", "20", "--scope", "matrix"] if method.startswith("tamt") else [])]) == 1
    said = capsys.readouterr().err
    assert "learning_rate" in said and "Traceback" not in said
    assert list((tmp_path/"runs").glob("*/result.json")) == []


def test_a_batch_without_a_masked_token_costs_nothing():
    net = new_net(BertForMaskedLM)
    assert torch.isfinite(mlm_loss(net, dict(input_ids=torch.ones(1, 3, dtype=torch.long), labels=torch.full((1, 3), -100))))
