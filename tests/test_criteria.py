"""Criteria as methods: scored where the spec says, shared between sparsities and scopes, exact, the same bytes after a kill, one sentence where they cannot be had."""
import pytest
import torch

import lottery_nb.methods as methods_module
from lottery_nb.baseline import WEIGHTS, dense, source_spec, target_spec, theta0
from lottery_nb.cli import main
from lottery_nb.files import BadInput
from lottery_nb.methods import METHODS, SCORES_FILE, add_method, find_ticket, one_shot, calibration_batches, ticket_pieces
from lottery_nb.micro import tiny_world
from lottery_nb.scores import SCORES, collect
from lottery_nb.select import kept_count, topk_mask
from lottery_nb.spec import READS, TicketSpec
from lottery_nb.training import load_weights
from lottery_nb.weights import prunable

DATA = ["first-order", "fisher", "snip", "wanda"]


@pytest.fixture(scope="module")
def world(tmp_path_factory): return tiny_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def make(world):
    "A short spec on the tiny world"
    tiny, reviews = world
    return lambda **values: TicketSpec(**dict(task=reviews, model=tiny, sparsity=.5, max_steps=6, batch_size=8, max_length=16, learning_rate=1e-2) | values)


@pytest.mark.parametrize("scope", ["global", "matrix", "erk", "2:4"])
@pytest.mark.parametrize("method", DATA + ["movement", "omp", "random"])
def test_exact_under_every_scope(method, scope, make, tmp_path_factory):
    mask = find_ticket(make(method=method, scope=scope), tmp_path_factory.getbasetemp()/"shared").mask
    assert mask.kept == kept_count(mask.total, .5)
    if scope == "2:4": assert all((kept.view(-1, 4).sum(1) == 2).all() for kept in mask.values())
    if scope == "matrix": assert set(mask.densities().values()) == {.5}


@pytest.mark.parametrize("method", DATA)
@pytest.mark.parametrize("at", ["", "pretrained", "finetuned"])
def test_scores_are_those_of_the_weights_that_the_spec_names(method, at, make, tmp_path):
    spec = make(method=method, score_at=at, score_examples=20)
    ticket, source, model = find_ticket(spec, tmp_path), source_spec(spec), theta0(target_spec(spec))
    if (at or {"snip": "pretrained"}.get(method, "finetuned")) == "finetuned": load_weights(model, dense(source, tmp_path)/WEIGHTS)
    pool = prunable(model)
    assert ticket.mask == topk_mask(collect(method, model, pool, calibration_batches(source, 20), spec.seed), .5)
    assert sum(len(batch["labels"]) for batch in calibration_batches(source, 20)) == 20


@pytest.mark.parametrize("method", DATA)
def test_a_stage_is_shared_by_sparsities_and_scopes_and_nests(method, make, tmp_path, monkeypatch):
    calls, original = [], methods_module.collect
    monkeypatch.setattr(methods_module, "collect", lambda *args: calls.append(args[0]) or original(*args))
    masks = [find_ticket(make(method=method, sparsity=s), tmp_path).mask for s in (.3, .5, .9)]
    find_ticket(make(method=method, scope="erk"), tmp_path)
    assert calls == [method] and all(inner.nested_in(outer) for outer, inner in zip(masks, masks[1:]))
    find_ticket(make(method=method, score_examples=1024), tmp_path)
    assert calls == [method]                                    # 1,024 is the default
    find_ticket(make(method=method, score_examples=8), tmp_path)
    find_ticket(make(method=method, seed=1), tmp_path)
    assert calls == [method]*3


def test_soft_movement_is_shared_and_hard_is_not(make, tmp_path, monkeypatch):
    calls, original = [], methods_module.train_scores
    monkeypatch.setattr(methods_module, "train_scores", lambda *args: calls.append(args[-1]) or original(*args))
    soft = [find_ticket(make(method="movement", movement="soft", sparsity=s), tmp_path) for s in (.3, .5)]
    assert calls == ["soft"] and soft[1].mask.nested_in(soft[0].mask) and soft[0].provenance["movement"] == "soft"
    for s in (.3, .5): find_ticket(make(method="movement", sparsity=s), tmp_path)
    assert calls == ["soft", "hard", "hard"]


@pytest.mark.parametrize("method", DATA + ["movement"])
def test_a_stage_killed_at_its_end_is_made_anew_to_the_same_bytes(method, make, tmp_path, monkeypatch):
    spec = make(method=method)
    whole = find_ticket(spec, tmp_path/"whole")
    original = methods_module.save_file
    def torn(tensors, path): raise KeyboardInterrupt
    monkeypatch.setattr(methods_module, "save_file", torn)
    with pytest.raises(KeyboardInterrupt): find_ticket(spec, tmp_path/"torn")
    assert not list((tmp_path/"torn").glob(f"stages/{method}*/{SCORES_FILE}"))
    monkeypatch.setattr(methods_module, "save_file", original)
    assert find_ticket(spec, tmp_path/"torn").mask == whole.mask
    files = [next((tmp_path/place/"stages").glob(f"{method}*"))/SCORES_FILE for place in ("whole", "torn")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_equal_scores_are_settled_in_the_pools_order_not_the_files(make, tmp_path):
    "A criterion whose scores are all equal keeps the first weights of the pool; safetensors files sort by name"
    SCORES["equal"] = lambda weights, losses: {name: torch.zeros_like(weight) for name, weight in weights.items()}
    add_method("equal", one_shot("equal"))
    try:
        assert READS["equal"] == READS["fisher"]   # it reads data
        mask = find_ticket(make(method="equal"), tmp_path).mask
    finally:
        for table in (SCORES, METHODS, READS): table.pop("equal")
    flat = torch.cat([mask[name].flatten() for name in prunable(theta0(target_spec(make(method="omp"))))])
    assert flat[:mask.kept].all() and not flat[mask.kept:].any()


def test_a_source_of_its_own(make, tmp_path):
    "Scored on MLM, ticket for the task"
    (tmp_path/"text.txt").write_text("the film was good the meal was fine\n" * 80)
    for method in DATA + ["movement"]:
        spec = make(method=method, source="mlm", text=str(tmp_path/"text.txt"))
        ticket = find_ticket(spec, tmp_path/"runs")
        assert ticket.provenance["source"] == "mlm" and ticket.mask != find_ticket(make(method=method), tmp_path/"runs").mask
    labels = [batch["labels"] for batch in calibration_batches(source_spec(spec), 16)]
    assert all(0 < (part != -100).sum() < part.numel() for part in labels)


def test_what_they_cost(make):
    kinds = lambda **values: [(piece.kind, piece.steps) for piece in ticket_pieces(make(**values))]
    assert kinds(method="fisher") == [("dense baseline", 6), ("dense baseline", 6), ("retraining", 6)]   # the same stage twice
    assert kinds(method="snip") == [("dense baseline", 6), ("retraining", 6)]
    assert kinds(method="movement") == [("dense baseline", 6), ("movement", 6), ("retraining", 6)]


@pytest.fixture
def rounds(monkeypatch):
    "Nothing may be trained"
    def trained(*args, **options): raise AssertionError("trained")
    monkeypatch.setattr(methods_module, "dense", trained)
    monkeypatch.setattr(methods_module, "train_scores", trained)


@pytest.mark.parametrize("pool", ["encoder+embeddings", "encoder+biases"])
def test_wanda_says_what_it_cannot_score_before_anything_is_trained(pool, make, rounds, tmp_path):
    with pytest.raises(BadInput, match="choose a pool without embeddings and biases"): find_ticket(make(method="wanda", pool=pool), tmp_path)
    assert not (tmp_path/"stages").exists()


@pytest.mark.parametrize("method", DATA + ["movement", "omp"])
def test_a_pattern_that_does_not_fit_is_refused_before_anything_is_trained(method, make, rounds, tmp_path):
    with pytest.raises(BadInput, match="scope 1:5 needs rows that 5 divides"): find_ticket(make(method=method, scope="1:5", sparsity=.8), tmp_path)
    assert not (tmp_path/"stages").exists()


@pytest.mark.parametrize("values, message", [
    (dict(scope="2:4", sparsity=.7), "scope 2:4 keeps 2 of every 4 weights, so sparsity must be 0.5, got 0.7"), (dict(movement="firm"), "movement must be one of hard, soft"),
    (dict(method="snap"), "did you mean 'snip'"), (dict(score_examples=0), "score_examples must be at least 1"), (dict(method="omp", score_at="pretrained"), "method omp does not read score_at")])
def test_bad_input_is_one_sentence_and_2(values, message, world, tmp_path, capsys, warm_python):
    words = [word for name, value in (dict(method="movement" if "movement" in values else "wanda") | values).items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert main(["run", "ticket", "--task", world[1], "--model", world[0], *words, "--runs", str(tmp_path/"runs")]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not (tmp_path/"runs").exists()


def test_a_criterion_that_yields_nan_is_named_and_leaves_nothing(make, tmp_path):
    SCORES["odd"] = lambda weights, losses: {name: weight.detach() * float("nan") for name, weight in weights.items()}
    add_method("odd", one_shot("odd"))
    try:
        with pytest.raises(BadInput, match="criterion odd gave a NaN for bert.encoder.layer.0.attention.self.query.weight"): find_ticket(make(method="odd"), tmp_path)
        assert not list(tmp_path.glob(f"stages/odd*/{SCORES_FILE}")) and not list(tmp_path.glob(f"stages/odd*.partial/{SCORES_FILE}"))
    finally:
        for table in (SCORES, METHODS, READS): table.pop("odd")
