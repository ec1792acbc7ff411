"""Movement pruning against a loop by hand, killed and resumed, exact under every scope."""
import signal
import subprocess

import pytest
import torch
import warm
from safetensors.torch import load_file

from lottery_nb import movement
from lottery_nb.files import BadInput
from lottery_nb.micro import tiny_world
from lottery_nb.models import load_model, load_tokenizer
from lottery_nb.movement import risen, train_scores
from lottery_nb.select import topk_mask
from lottery_nb.spec import RunSpec
from lottery_nb.tasks import get_task, load_data
from lottery_nb.training import Diverged, encoded
from lottery_nb.weights import prunable


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    "The tiny world: a function that makes a spec, and one that trains scores for it from θ0"
    tiny, reviews = tiny_world(tmp_path_factory.mktemp("world"))
    make = lambda **values: RunSpec(**dict(task=reviews, model=tiny, max_steps=20, batch_size=8, max_length=16, learning_rate=1e-2) | values)
    spec = make()
    task, data, tokenizer = get_task(spec.task), load_data(spec), load_tokenizer(tiny)
    def run(folder, spec=spec, net=None, **options):
        net = net or load_model(tiny, task, seed=0, dropout=spec.dropout)
        return train_scores(net, task, data, tokenizer, spec, folder, **options), net
    run.make, run.net, run.batch = make, lambda dropout=None: load_model(tiny, task, 0, dropout), lambda spec: (encoded(spec, task, data, tokenizer, "train"), tokenizer)
    run.paths = (tiny, reviews)
    return run


def equal(one, other): return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_equals_a_plain_loop(world, tmp_path, kind):
    "One batch an epoch, no dropout: autograd through W ⊙ (m + S - const(S)), two groups of AdamW, clipping of the weights' gradients"
    spec, steps = world.make(batch_size=64, max_steps=12, dropout=0., warmup=.25), 12
    (scores, _), net = world(tmp_path, spec, kind=kind, sparsity=.6, scope="matrix")
    twin = world.net(0.).train()
    features, tokenizer = world.batch(spec)
    batch = tokenizer.pad(features[:], return_tensors="pt")
    weights = prunable(twin)
    S = {name: torch.zeros_like(weight, requires_grad=True) for name, weight in weights.items()}
    total = sum(weight.numel() for weight in weights.values())
    rate = max(movement.SCORE_RATE, movement.SCORE_TRAVEL / steps)
    optimizer = torch.optim.AdamW([dict(params=list(twin.parameters()), lr=1e-2), dict(params=list(S.values()), lr=rate)], betas=(.9, .999), weight_decay=0.)
    for step in range(steps):
        share, line = risen(step, steps), step / 3 if step < 3 else (steps - step) / (steps - 3)
        masks = topk_mask({n: s.detach() for n, s in S.items()}, .6 * share, "matrix") if kind == "hard" else {n: s.detach().sigmoid() > movement.THRESHOLD * share for n, s in S.items()}
        for group, top in zip(optimizer.param_groups, (1e-2, rate)): group["lr"] = top * line
        masked = {n: w * (masks[n].float() + S[n] - S[n].detach()) for n, w in weights.items()}
        loss = torch.func.functional_call(twin, masked, kwargs=dict(batch)).loss
        if kind == "soft": loss = loss + movement.PULL * share * sum(s.sigmoid().sum() for s in S.values()) / total
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.)
        optimizer.step()
    for name, score in scores.items(): torch.testing.assert_close(score, S[name].detach(), atol=3e-3, rtol=1e-3)   # Adam divides by tiny gradients
    for weight, theirs in zip(net.parameters(), twin.parameters()): torch.testing.assert_close(weight, theirs, atol=2e-4, rtol=1e-3)


def test_a_score_rises_where_a_weight_leaves_zero(world, tmp_path, monkeypatch):
    "By plain gradient descent S is -α Σ W ∂L/∂W': with a tiny rate of the weights and no mask, -α T W ∂L/∂W"
    spec = world.make(batch_size=64, max_steps=3, dropout=0., warmup=0., learning_rate=1e-9)
    net = world.net(0.)
    features, tokenizer = world.batch(spec)
    net.train()
    net(**tokenizer.pad(features[:], return_tensors="pt")).loss.backward()
    wanted = {name: -weight.grad * weight.detach() for name, weight in prunable(net).items()}
    (scores, _), _ = world(tmp_path, spec, sparsity=0.)
    for name, want in wanted.items():
        sure = want.abs() > want.abs().max() / 100   # Adam hands on the sign; rounding decides where there is none
        assert torch.equal(scores[name][sure].sign(), want[sure].sign())


def test_what_a_forward_pass_sees(world, tmp_path):
    "At the end exactly the asked share is masked, the schedule before it, and the weights that come back are dense"
    seen = []
    net = world.net()
    net.register_forward_pre_hook(lambda module, inputs: seen.append(sum(int((weight == 0).sum()) for weight in prunable(module).values())))
    total = sum(weight.numel() for weight in prunable(net).values())
    world(tmp_path, net=net, sparsity=.7)
    assert seen == [total - round((1 - .7 * risen(step, 20)) * total) for step in range(20)] and seen[0] == 0 and seen[-1] == round(.7 * total)
    assert all((weight != 0).all() for weight in prunable(net).values())


@pytest.mark.parametrize("scope", ["2:4", "erk", "matrix"])
def test_scopes_hold_while_scores_are_trained(world, tmp_path, scope):
    seen = []
    net = world.net()
    net.register_forward_pre_hook(lambda module, inputs: seen.append({name: (weight != 0) for name, weight in prunable(module).items()}))
    (scores, _), _ = world(tmp_path, net=net, sparsity=.5, scope=scope)
    assert {name: int(kept.sum()) for name, kept in seen[-1].items()} == topk_mask(scores, .5, scope).counts
    if scope == "2:4": assert all(int(n) in (2, 3, 4) for masks in seen for kept in masks.values() for n in kept.view(-1, 4).sum(1).unique())


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("passes", [1, 7, 16])
def test_resumes_to_the_same_bytes(world, tmp_path, kind, passes):
    (whole, run), net = world(tmp_path/"whole", kind=kind)
    left, killed = iter(range(passes)), world.net()
    def bomb(module, inputs):
        if next(left, None) is None: raise KeyboardInterrupt
    killed.register_forward_pre_hook(bomb)
    with pytest.raises(KeyboardInterrupt): world(tmp_path/"torn", net=killed, kind=kind, every=0)
    assert passes == 1 or list((tmp_path/"torn").glob("checkpoint-*/scores.safetensors"))
    (scores, resumed), again = world(tmp_path/"torn", kind=kind, every=0)
    assert equal(scores, whole) and resumed.history.equals(run.history)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters()))
    assert not list((tmp_path/"torn").glob("checkpoint-*"))


KILLED = '''
import os, signal, sys
from safetensors.torch import save_file
from lottery_nb.models import load_model, load_tokenizer
from lottery_nb.movement import train_scores
from lottery_nb.spec import RunSpec
from lottery_nb.tasks import get_task, load_data
tiny, reviews, folder, passes = sys.argv[1:]
spec = RunSpec(task=reviews, model=tiny, max_steps=20, batch_size=8, max_length=16, learning_rate=1e-2)
task = get_task(spec.task)
net, left = load_model(tiny, task, 0, spec.dropout), iter(range(int(passes)))
def bomb(module, inputs):
    if next(left, None) is None: os.kill(os.getpid(), signal.SIGKILL)

net.register_forward_pre_hook(bomb)
scores, _ = train_scores(net, task, load_data(spec), load_tokenizer(tiny), spec, folder, every=0)
save_file(scores, folder + "/scores.safetensors")
'''


def test_kill_minus_nine(world, tmp_path):
    (whole, _), _ = world(tmp_path/"whole")
    start = lambda passes: subprocess.run([warm.command("python"), "-c", KILLED, *world.paths, str(tmp_path/"torn"), str(passes)], capture_output=True).returncode
    assert start(9) == -signal.SIGKILL and list((tmp_path/"torn").glob("checkpoint-*"))
    assert start(10**6) == 0
    assert equal(load_file(tmp_path/"torn"/"scores.safetensors"), whole)


def test_a_damaged_checkpoint_is_passed_over(world, tmp_path):
    (whole, _), _ = world(tmp_path/"whole")
    left, killed = iter(range(12)), world.net()
    def bomb(module, inputs):
        if next(left, None) is None: raise KeyboardInterrupt
    killed.register_forward_pre_hook(bomb)
    with pytest.raises(KeyboardInterrupt): world(tmp_path/"torn", net=killed, every=0)
    newest = max((tmp_path/"torn").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    torn = newest/"scores.safetensors"
    torn.write_bytes(torn.read_bytes()[:-4] + b"torn")
    (scores, _), _ = world(tmp_path/"torn")
    assert equal(scores, whole)


def test_a_nan_is_named(world, tmp_path, monkeypatch):
    "In the loss by the training; in the scores alone by the criterion"
    net = world.net()
    next(iter(prunable(net).values())).data[0, 0] = float("nan")
    with pytest.raises(Diverged): world(tmp_path/"loss", net=net)
    monkeypatch.setattr(movement, "train", lambda trainer: next(iter(trainer.scores.values())).data.fill_(float("nan")))
    with pytest.raises(BadInput, match="criterion movement gave a NaN for bert.encoder.layer.0.attention.self.query.weight"): world(tmp_path/"scores")


def test_scores_are_trained_on_text_too(world, tmp_path):
    "MLM with the tied word embedding in the pool"
    tiny, _ = world.paths
    (tmp_path/"text.txt").write_text("the film was good the meal was fine\n" * 80)
    spec = RunSpec(task="mlm", model=tiny, text=str(tmp_path/"text.txt"), max_steps=10, batch_size=4, max_length=16, learning_rate=1e-3)
    task = get_task("mlm")
    net = load_model(tiny, task, 0)
    scores, _ = train_scores(net, task, load_data(spec), load_tokenizer(tiny), spec, tmp_path/"run", pool="encoder+embeddings", sparsity=.5)
    assert set(scores) == set(prunable(net, "encoder+embeddings")) and all(score.abs().sum() > 0 for score in scores.values())
