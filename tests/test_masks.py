"Masks against sets and scikit-learn; holds against torch.nn.utils.prune under many optimizers."
import copy
import gc
import io
import pickle
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.metrics import jaccard_score
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import prune
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel, Trainer, TrainingArguments
from transformers.optimization import Adafactor as HFAdafactor

from lottery_nb import masks
from lottery_nb.files import BadInput
from lottery_nb.masks import Mask, hold
from lottery_nb.weights import base_name, fingerprint, prunable

CONFIG = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, max_position_embeddings=20, hidden_dropout_prob=0., attention_probs_dropout_prob=0.)
OPTIMIZERS = {
    "adamw": lambda ws: torch.optim.AdamW(ws, lr=1e-3, weight_decay=.1),
    "adamw one by one": lambda ws: torch.optim.AdamW(ws, lr=1e-3, weight_decay=.1, foreach=False),
    "adamw fused": lambda ws: torch.optim.AdamW(ws, lr=1e-3, weight_decay=.1, fused=True),
    "sgd": lambda ws: torch.optim.SGD(ws, lr=.01, momentum=.9, weight_decay=.01, nesterov=True),
    "rmsprop": lambda ws: torch.optim.RMSprop(ws, lr=1e-4, momentum=.5, weight_decay=.01),
    "adafactor": lambda ws: torch.optim.Adafactor(ws, lr=1e-3, weight_decay=.01),
    "adafactor of transformers": lambda ws: HFAdafactor(ws, lr=1e-3, scale_parameter=False, relative_step=False, weight_decay=.01),
    "muon": lambda ws: torch.optim.Muon([w for w in ws if w.ndim == 2], lr=1e-3, weight_decay=.1),
}


def classifier() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(CONFIG)


def random_mask(model: nn.Module, density: float = .3, pool: str = "encoder") -> Mask:
    draw = torch.Generator().manual_seed(1)
    return Mask({name: torch.rand(weight.shape, generator=draw) < density for name, weight in prunable(model, pool).items()})


def loss(model: nn.Module, seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return model(input_ids=torch.randint(40, (4, 8), generator=draw), labels=torch.randint(2, (4,), generator=draw)).loss


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 12, clip: float = .3, accumulate: int = 1) -> list[float]:
    "Gradient norms before clipping"
    norms = []
    for step in range(steps):
        optimizer.zero_grad()
        for part in range(accumulate): (loss(model, accumulate * step + part) / accumulate).backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), clip)) if clip else 0.)
        optimizer.step()
    return norms


def alive(model: nn.Module, mask: Mask) -> int:
    "Pruned entries whose bits are not zero"
    return sum(int(model.get_parameter(name).data[~kept].view(torch.int32).count_nonzero()) for name, kept in mask.items())


@pytest.mark.parametrize("clip", [0, .3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_trajectory_equals_torch_prune(optimizer, clip):
    ours, theirs = classifier(), classifier()
    mask = random_mask(ours)
    hold(ours, mask)
    theirs.load_state_dict(ours.state_dict())   # Adafactor looks at the norm of the stored weights: both start pruned
    for name, kept in mask.items(): prune.custom_from_mask(theirs.get_submodule(name.removesuffix(".weight")), "weight", kept)
    norms = [train(model, OPTIMIZERS[optimizer](list(model.parameters())), clip=clip, accumulate=2) for model in (ours, theirs)]
    assert np.allclose(*norms, rtol=1e-5)
    assert alive(ours, mask) == 0
    for name, weight in ours.named_parameters():
        twin = theirs.get_parameter(f"{name}_orig") * mask[name] if name in mask else theirs.get_parameter(name)
        assert (weight - twin).abs().max() <= 1e-6, name


def test_muon_alone_would_revive_pruned_weights():
    "The reason for zeroing after the step: masked gradients are not enough"
    model = classifier()
    mask = random_mask(model)
    with hold(model, mask) as held:
        held._handles.pop().remove()
        train(model, OPTIMIZERS["muon"](list(model.parameters())), steps=1)
    assert alive(model, mask) > 0


def test_old_momentum_does_not_revive():
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=.1, momentum=.9)
    train(model, optimizer, steps=2)
    mask = random_mask(model)
    hold(model, mask)
    train(model, optimizer, steps=1)
    assert alive(model, mask) == 0


def test_trainer_save_and_reload(tmp_path):
    model = classifier()
    mask, keys = random_mask(model, pool="encoder+pooler"), list(model.state_dict())
    held = hold(model, mask)
    rows = [dict(input_ids=torch.randint(40, (8,)), labels=i % 2) for i in range(24)]
    settings = TrainingArguments(tmp_path, per_device_train_batch_size=4, num_train_epochs=2, learning_rate=1e-3, weight_decay=.1, max_grad_norm=.5, gradient_accumulation_steps=2, save_strategy="epoch", report_to=[], use_cpu=True, disable_tqdm=True)
    before = model.classifier.weight.detach().clone()
    Trainer(model, settings, train_dataset=rows).train()
    assert alive(model, mask) == 0 and not torch.equal(before, model.classifier.weight)
    assert list(model.state_dict()) == keys and type(model) is BertForSequenceClassification
    model.save_pretrained(tmp_path / "saved")
    again, report = BertForSequenceClassification.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not report["missing_keys"] and alive(again, mask) == 0
    assert all(torch.equal(weight, again.get_parameter(name)) for name, weight in model.named_parameters())
    Trainer(model, settings, train_dataset=rows).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert alive(model, mask) == 0
    held.release()


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("part", ["", "bert", "bert.encoder.layer.0.output.dense"])
def test_load_state_dict_at_any_level(assign, part):
    model, fresh = classifier(), BertForSequenceClassification(CONFIG)
    mask = random_mask(model)
    with hold(model, mask):
        model.get_submodule(part).load_state_dict(fresh.get_submodule(part).state_dict(), assign=assign)
        assert alive(model, mask) == 0
        model.requires_grad_()
        train(model, OPTIMIZERS["muon"](list(model.parameters())), steps=2)
        assert alive(model, mask) == 0


def test_copies_are_plain_models():
    model = classifier()
    mask = random_mask(model)
    hold(model, mask)
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(stream, weights_only=False)):
        assert alive(twin, mask) == 0
        train(twin, torch.optim.SGD(twin.parameters(), lr=.1), steps=1)
        assert alive(twin, mask) > 0
        twin.load_state_dict(BertForSequenceClassification(CONFIG).state_dict())
        assert alive(twin, mask) > mask.total - mask.kept - 20
    train(model, OPTIMIZERS["adamw"](list(model.parameters())), steps=1)
    assert alive(model, mask) == 0


def test_a_deleted_model_takes_its_hold_along():
    from torch.optim.optimizer import _global_optimizer_post_hooks
    before, model = len(_global_optimizer_post_hooks), classifier()
    hold(model, random_mask(model))
    gone = weakref.ref(model)
    assert len(_global_optimizer_post_hooks) == before + 1
    del model
    gc.collect()
    assert gone() is None and len(_global_optimizer_post_hooks) == before


def test_release_is_final_and_may_be_repeated():
    model = classifier()
    mask = random_mask(model)
    held = hold(model, mask)
    held.release(), held.release()
    train(model, OPTIMIZERS["adamw"](list(model.parameters())), steps=1)
    assert alive(model, mask) > 0


def test_frozen_weights_are_zeroed_and_held_when_they_thaw():
    model = classifier()
    model.bert.requires_grad_(False)
    mask = random_mask(model)
    hold(model, mask)
    assert alive(model, mask) == 0 and not any(weight.requires_grad for weight in model.bert.parameters())
    model.bert.requires_grad_()
    loss(model, 0).backward()
    assert all((model.get_parameter(name).grad[~kept] == 0).all() for name, kept in mask.items())


def test_names_with_and_without_prefix_and_other_types():
    model, base = classifier(), BertModel(CONFIG).bfloat16()
    mask = random_mask(model)
    hold(model, Mask({base_name(name): kept for name, kept in mask.items()}))
    assert alive(model, mask) == 0
    with hold(base, mask):
        base.double()
        base(torch.randint(40, (2, 6))).last_hidden_state.square().sum().backward()
        for name, kept in mask.items():
            weight = base.get_parameter(base_name(name))
            assert (weight[~kept] == 0).all() and (weight.grad[~kept] == 0).all() and (weight[kept] != 0).all()


def test_a_refused_mask_touches_nothing():
    model = classifier()
    before = copy.deepcopy(model.state_dict())
    mask = random_mask(model)
    for extra in ({"bert.encoder.layer.7.output.dense.weight": torch.ones(1, dtype=torch.bool)}, {"classifier.weight": torch.zeros(1, 1, dtype=torch.bool)}):
        with pytest.raises(BadInput, match=next(iter(extra))): hold(model, Mask(dict(mask) | extra))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_tied_embeddings_stay_tied_and_pruned_on_both_sides():
    model = BertForMaskedLM(CONFIG)
    mask = Mask({"bert.embeddings.word_embeddings.weight": torch.rand(40, 16) < .5})
    with hold(model, mask):
        optimizer = torch.optim.AdamW(model.parameters(), lr=.01)
        model(input_ids=torch.arange(16)[None], labels=torch.arange(16)[None]).loss.backward()
        optimizer.step()
        assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
        assert alive(model, mask) == 0


def test_distributed_data_parallel_sums_masked_gradients(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        model = classifier()
        mask = random_mask(model)
        hold(model, mask)
        wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        loss(wrapped, 0).backward()
        assert all((model.get_parameter(name).grad[~kept] == 0).all() for name, kept in mask.items())
    finally: torch.distributed.destroy_process_group()


REPLACE = {
    "assignment": lambda module, fresh: setattr(module, "weight", fresh),
    "below the modules": lambda module, fresh: module._parameters.update(weight=fresh),
    "another module": None,
}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("way", REPLACE)
def test_a_replaced_parameter_is_held(way, optimizer):
    model = classifier()
    mask, fresh = random_mask(model), torch.rand(16, 16)
    hold(model, mask)
    attention = model.bert.encoder.layer[1].attention.self
    if way == "another module": attention.query = nn.Linear(16, 16)
    else: REPLACE[way](attention.query, nn.Parameter(fresh.clone()))
    if way == "assignment": assert alive(model, mask) == 0
    train(model, OPTIMIZERS[optimizer](list(model.parameters())), steps=2)
    assert alive(model, mask) == 0 and (attention.query.weight.grad[~mask["bert.encoder.layer.1.attention.self.query.weight"]] == 0).all()
    kept = mask["bert.encoder.layer.1.attention.self.query.weight"]
    if way != "another module": assert (attention.query.weight[kept] - fresh[kept]).abs().max() < .1


def test_a_replaced_parameter_is_let_go_with_the_rest():
    model = classifier()
    mask = random_mask(model)
    with hold(model, mask): model.bert.encoder.layer[0].output.dense.weight = nn.Parameter(torch.rand(16, 24))
    train(model, OPTIMIZERS["adamw"](list(model.parameters())), steps=1)
    assert alive(model, mask) > 0
    model.bert.encoder.layer[0].output.dense.weight = nn.Parameter(torch.ones(16, 24))
    assert (model.bert.encoder.layer[0].output.dense.weight == 1).all()


def test_a_held_weight_that_changes_its_shape_or_goes_is_named():
    lm = BertForMaskedLM(copy.deepcopy(CONFIG))
    hold(lm, random_mask(lm, pool="encoder+embeddings"))
    with pytest.raises(BadInput, match=r"held weight bert.embeddings.word_embeddings.weight was \(40, 16\) and is now \(48, 16\)"):
        lm.resize_token_embeddings(48, mean_resizing=False)
    model = classifier()
    hold(model, random_mask(model))
    optimizer = OPTIMIZERS["adamw"](list(model.parameters()))
    model.bert.encoder.layer[1].attention.self.key = nn.Identity()
    with pytest.raises(BadInput, match="layer.1.attention.self.key.weight was .* and is now gone"): optimizer.step()


def test_weights_under_an_adapter_stay_held():
    model = classifier()
    mask = random_mask(model)
    hold(model, mask)

    class LowRank(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base_layer, self.down, self.up = base, nn.Linear(16, 2, bias=False), nn.Linear(2, 16, bias=False)
        @property
        def weight(self): return self.base_layer.weight
        def forward(self, x): return self.base_layer(x) + self.up(self.down(x))

    for layer in model.bert.encoder.layer: layer.attention.self.query = LowRank(layer.attention.self.query)
    train(model, OPTIMIZERS["muon"](list(model.parameters())), steps=2)
    assert all((model.get_parameter(name)[~kept] == 0).all() for name, kept in mask.items())


def test_quantised_weights_and_stored_holds_are_refused():
    layer = nn.Linear(2, 2)
    layer.weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(BadInput, match="mask member weight needs a floating-point weight, the model's is torch.int8"): hold(layer, Mask({"weight": torch.eye(2).bool()}))
    model = classifier()
    model.held = hold(model, random_mask(model))
    for store in (lambda: torch.save(model, io.BytesIO()), lambda: copy.deepcopy(model)):
        with pytest.raises(BadInput, match="a hold cannot be copied or saved"): store()


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("optimizer", ["adamw", "adamw fused", "sgd"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_fully_sharded_training_equals_plain_training(one_process, when, optimizer):
    "FSDP2 puts its shards in the place of the parameters, below the modules"
    plain, sharded = classifier(), classifier()
    mask = random_mask(plain, pool="encoder+embeddings+pooler")
    if when == "before": hold(sharded, mask)
    for layer in sharded.bert.encoder.layer: fully_shard(layer)
    fully_shard(sharded)
    if when == "after": hold(sharded, mask)
    hold(plain, mask)
    for model in (plain, sharded): train(model, OPTIMIZERS[optimizer](list(model.parameters())), steps=4, clip=.3 if when == "after" else 0)
    for name, weight in sharded.named_parameters():
        whole = weight.full_tensor()
        assert (whole - plain.get_parameter(name)).abs().max() < 1e-6, name
        if name in mask: assert (whole[~mask[name]].view(torch.int32) == 0).all() and (weight.grad.full_tensor()[~mask[name]] == 0).all()


def test_a_ticket_fits_a_sharded_model(one_process):
    model = classifier()
    identity, shapes = fingerprint(model), {name: weight.shape for name, weight in prunable(model).items()}
    fully_shard(model)
    assert fingerprint(model) == identity and {name: weight.shape for name, weight in prunable(model).items()} == shapes


@st.composite
def two_masks(draw):
    shapes = draw(st.lists(st.sampled_from([(1,), (7,), (8,), (9,), (2, 3), (4, 4, 1), (3, 11)]), min_size=1, max_size=4))
    seed, density = draw(st.integers(0, 99)), draw(st.sampled_from([0., .2, .5, 1.]))
    generator = torch.Generator().manual_seed(seed)
    return [Mask({f"m{i}": torch.rand(shape, generator=generator) < density for i, shape in enumerate(shapes)}) for _ in range(2)]


@settings(deadline=None)
@given(two_masks())
def test_overlap_equals_scikit_learn(masks):
    flat = [torch.cat([kept.flatten() for kept in mask.values()]).numpy() for mask in masks]
    for side, value in (("kept", True), ("pruned", False)):
        expected = [jaccard_score(*(flags == value for flags in flat), zero_division=1.)]
        each = [jaccard_score(*(mask[name].flatten().numpy() == value for mask in masks), zero_division=1.) for name in masks[0]]
        assert masks[0].jaccard(masks[1], side) == pytest.approx(expected[0])
        assert masks[0].jaccard(masks[1], side, "matrix") == pytest.approx(np.mean(each))
        assert masks[0].jaccard(masks[1], side) == masks[1].jaccard(masks[0], side) == masks[0].complement().jaccard(masks[1].complement(), {"kept": "pruned", "pruned": "kept"}[side])


@settings(deadline=None)
@given(two_masks())
def test_algebra_and_bits(masks):
    first, second = masks
    assert Mask.unpack(first.pack(), first.shapes) == first
    assert (first & second).nested_in(first) and first.nested_in(first | second)
    assert (first & second).kept + (first | second).kept == first.kept + second.kept
    assert (first & second).complement() == first.complement() | second.complement()
    assert first.nested_in(second) == ((first & second) == first)
    assert all(bits.dtype == torch.uint8 and bits.numel() == (first[name].numel() + 7) // 8 for name, bits in first.pack().items())


def test_different_members_are_named():
    mask = Mask({"a": torch.ones(2, dtype=torch.bool)})
    for other in (Mask({"b": torch.ones(2, dtype=torch.bool)}), Mask({"a": torch.ones(3, dtype=torch.bool)})):
        for compare in (mask.jaccard, mask.nested_in, mask.__and__, mask.__or__):
            with pytest.raises(BadInput, match="masks differ in their members: a"): compare(other)
        assert mask != other
    with pytest.raises(BadInput, match="must be 1 bytes of bits"): Mask.unpack({"a": torch.zeros(2, dtype=torch.uint8)}, {"a": (2,)})


def two_of_four(*shape):
    from lottery_nb.select import topk_mask
    return topk_mask({"w": torch.rand(*shape, generator=torch.Generator().manual_seed(0))}, .5, "2:4")["w"]


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 64))


@pytest.mark.parametrize("forced", [False, True])
def test_semi_structured_equals_the_masked_model(forced, monkeypatch):
    "On a CPU by the dense way out, and with a stand-in for torch's kernels by the sparse one"
    net, twin = small_net(), small_net()
    mask = Mask({"0.weight": two_of_four(32, 64), "2.bias": torch.rand(64) < .5})
    if forced:
        monkeypatch.setattr(masks, "runs_sparse", lambda owner, kept: kept.ndim == 2)
        monkeypatch.setattr(masks, "to_sparse_semi_structured", torch.clone)
    assert masks.semi_structured(net, mask) == (["0.weight"] if forced else [])
    for name, kept in mask.items(): twin.get_parameter(name).data.mul_(kept)
    x = torch.randn(3, 64)
    assert torch.equal(net(x), twin(x))


def test_semi_structured_on_a_gpu():
    if not (torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)): pytest.skip("sparse tensor cores need an NVIDIA GPU since Ampere")
    net = small_net().cuda().half()
    mask = Mask({"0.weight": two_of_four(32, 64), "2.weight": torch.ones(64, 32, dtype=torch.bool)})
    twin = small_net().cuda().half()
    twin[0].weight.data.mul_(mask["0.weight"].cuda())
    assert masks.semi_structured(net, mask) == ["0.weight"]   # the other is not 2:4
    x = torch.randn(64, 64, device="cuda", dtype=torch.float16)
    assert torch.allclose(net(x), twin(x), atol=1e-2)
