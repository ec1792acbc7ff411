"""Gates, importance and removal against oracles that know nothing of hooks: weight surgery, one example at a time, finite differences."""
import copy
import json
import random
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import (AlbertConfig, AlbertModel, BertConfig, BertForMaskedLM, BertForPreTraining, BertForQuestionAnswering, BertForSequenceClassification, BertModel,
                          DistilBertModel, MPNetModel, RobertaConfig, RobertaForMaskedLM, RobertaForSequenceClassification)
from transformers.pytorch_utils import prune_linear_layer

from lottery_nb.files import BadInput
from lottery_nb.gates import (Gates, at_rest, cut_linear, flops, gate, importance, latency, load_smaller, normalised, open_gates, save_smaller,
                              sensitivity, smaller, speed_table, weight_share)
from lottery_nb.weights import encoder_layers
from lottery_nb.heads import surviving_heads
from lottery_nb.models import base_of
from lottery_nb.spec import AttentionSpec
from lottery_nb.subnetworks import gates_mask
from lottery_nb.tickets import Ticket, provenance_of

SIZE = dict(vocab_size=50, hidden_size=24, num_hidden_layers=3, num_attention_heads=4, intermediate_size=40, initializer_range=.2, max_position_embeddings=40)
LAYERS, HEADS = 3, 4
gate_sets = st.builds(lambda h, m: Gates(np.array(h).reshape(LAYERS, HEADS), m), st.lists(st.booleans(), min_size=12, max_size=12), st.lists(st.booleans(), min_size=3, max_size=3))


def make(kind, seed=0, **more):
    torch.manual_seed(seed)
    config = (RobertaConfig if kind.__name__.startswith("Roberta") else BertConfig)(**SIZE, **more)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1: parameter.add_(.2 * torch.randn_like(parameter))   # fresh biases are 0 and would hide mistakes
    return model


def inputs(examples=5, tokens=9, labels=3, seed=0):
    torch.manual_seed(seed)
    batch = dict(input_ids=torch.randint(5, 50, (examples, tokens)), attention_mask=torch.ones(examples, tokens, dtype=torch.long))
    batch["attention_mask"][::2, 6:] = 0
    return batch | ({"labels": torch.randint(0, labels, (examples,))} if labels else {})


def outputs(model, batch):
    with torch.no_grad(): return model(**{k: v for k, v in batch.items() if k != "labels"})[0]


def rows(batch, *which): return {k: v[list(which)] for k, v in batch.items()}


KINDS = [BertForSequenceClassification, RobertaForSequenceClassification]


def switched_off(model, gates):
    "The oracle: a copy whose weights make closed heads and MLPs add nothing"
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for layer, heads, mlp in zip(encoder_layers(twin), *gates):
            columns = torch.tensor(np.repeat(~heads, SIZE["hidden_size"] // HEADS))
            layer.attention.output.dense.weight[:, columns] = 0
            if not mlp: layer.output.dense.weight.zero_(); layer.output.dense.bias.zero_()
    return twin


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_closed_gate_changes_the_output_and_equals_surgery(kind, attention):
    "The guard: if a release of transformers makes the hooks idle, this fails"
    model, batch = make(kind, num_labels=3), inputs()
    model.set_attn_implementation(attention)
    whole = outputs(model, batch)
    for index in range(LAYERS * HEADS + LAYERS):
        flat = np.ones(LAYERS * HEADS + LAYERS, bool); flat[index] = False
        gates = Gates(flat[:12].reshape(LAYERS, HEADS), flat[12:])
        with gate(model, *gates): closed = outputs(model, batch)
        assert (closed - whole).abs().max() > 1e-4
        torch.testing.assert_close(closed, outputs(switched_off(model, gates), batch), atol=1e-5, rtol=0)
    assert torch.equal(outputs(model, batch), whole)


def test_head_mask_is_still_swallowed_without_effect():
    "Why gates are hooks; should this ever fail, transformers has head masks again"
    model, batch = make(BertForSequenceClassification), inputs(labels=2)
    with torch.no_grad(): masked = model(**batch, head_mask=torch.zeros(LAYERS, HEADS)).logits
    assert torch.equal(masked, outputs(model, batch))
    assert not hasattr(model, "prune_heads")


@pytest.mark.parametrize("kind", [BertModel, BertForMaskedLM, BertForPreTraining, BertForQuestionAnswering, RobertaForMaskedLM])
def test_gates_fit_every_head_class(kind):
    model, batch = make(kind), inputs(labels=0)
    gates = Gates(np.eye(LAYERS, HEADS), [1, 0, 1])
    with gate(model, *gates): gated = outputs(model, batch)
    torch.testing.assert_close(gated, outputs(switched_off(model, gates), batch), atol=1e-5, rtol=0)
    torch.testing.assert_close(gated, outputs(smaller(model, gates), batch), atol=1e-5, rtol=0)


def test_per_example_gates_act_on_their_example_only():
    model, batch = make(BertForSequenceClassification), inputs()
    heads = np.ones((5, LAYERS, HEADS)); heads[2, 1, 3] = 0
    with gate(model, heads, np.ones((5, LAYERS))): mixed = outputs(model, batch)
    whole = outputs(model, batch)
    assert torch.allclose(mixed[[0, 1, 3, 4]], whole[[0, 1, 3, 4]], atol=1e-6) and not torch.allclose(mixed[2], whole[2], atol=1e-4)


def test_hooks_are_gone_after_an_error_inside():
    model, batch = make(BertForSequenceClassification), inputs()
    whole = outputs(model, batch)
    with pytest.raises(RuntimeError):
        with gate(model, np.zeros((LAYERS, HEADS)), np.zeros(LAYERS)): raise RuntimeError("inside")
    assert torch.equal(outputs(model, batch), whole)


def test_other_encoders_are_refused():
    with pytest.raises(BadInput, match="architecture must be one of bert, .*; got .albert."): open_gates(AlbertModel(AlbertConfig(vocab_size=20, embedding_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)))


@pytest.mark.parametrize("heads,mlps", [((LAYERS, HEADS + 1), (LAYERS,)), ((LAYERS + 1, HEADS), (LAYERS + 1,)), ((LAYERS, HEADS), (2,)), ((5, LAYERS, HEADS), (LAYERS,))])
def test_gates_of_another_shape_are_refused(heads, mlps):
    with pytest.raises(BadInput, match="gates must be"): gate(make(BertModel), np.ones(heads), np.ones(mlps))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labels", ["classes", "regression"])
def test_importance_equals_one_example_at_a_time(kind, labels):
    model = make(kind, num_labels=1 if labels == "regression" else 3).double()
    batch = inputs(7)
    if labels == "regression": batch["labels"] = torch.rand(7, dtype=torch.float64)
    gates = Gates(np.random.default_rng(0).random((LAYERS, HEADS)) < .7, [1, 0, 1])
    alone = torch.cat([sensitivity(model, rows(batch, i), gates, each=False) for i in range(7)]).abs().mean(0)
    found = importance(model, [rows(batch, 0, 1, 2), rows(batch, 3, 4, 5, 6)], gates)
    np.testing.assert_allclose(np.concatenate([found.heads.ravel(), found.mlps]), alone.numpy(), atol=1e-13)


def test_importance_with_labels_per_token():
    "MLM: examples with different numbers of masked tokens still get the gradient of their own mean loss"
    model, batch = make(BertForMaskedLM).double(), inputs(labels=0)
    batch["labels"] = torch.full((5, 9), -100)
    for i in range(5): batch["labels"][i, :i + 1] = 7
    alone = torch.cat([sensitivity(model, rows(batch, i), open_gates(model), each=False) for i in range(5)])
    torch.testing.assert_close(sensitivity(model, batch, open_gates(model)), alone, atol=1e-12, rtol=0)


@pytest.mark.parametrize("member", ["heads", "mlps"])
def test_sensitivity_is_the_slope_of_the_loss(member):
    "Central differences of each example's loss in double precision, at every gate"
    model, batch = make(BertForSequenceClassification, num_labels=3).double(), inputs(2)
    slopes = sensitivity(model, batch, open_gates(model))

    def loss(i, flat):
        with torch.no_grad(), gate(model, flat[:12].view(LAYERS, HEADS), flat[12:]): return model(**rows(batch, i)).loss.item()

    for index in range(12) if member == "heads" else range(12, 15):
        up, down = torch.ones(15, dtype=torch.float64), torch.ones(15, dtype=torch.float64)
        up[index] += 1e-5; down[index] -= 1e-5
        for i in range(2): assert abs((loss(i, up) - loss(i, down)) / 2e-5 - slopes[i, index].item()) < 1e-8


def test_released_and_per_batch_modes_follow_the_usual_pattern():
    "The usual loop: one shared gate with a `.grad`, one backward per batch; never zeroed as released (B8), zeroed for per_batch"
    model, batches = make(BertForSequenceClassification, num_labels=3).double(), [inputs(4, seed=s) for s in range(3)]
    for mode, zeroed in (("as_released", False), ("per_batch", True)):
        heads, mlps = torch.ones(LAYERS, HEADS, dtype=torch.float64, requires_grad=True), torch.ones(LAYERS, dtype=torch.float64, requires_grad=True)
        total = torch.zeros(LAYERS, HEADS, dtype=torch.float64)
        for batch in batches:
            with gate(model, heads, mlps): model(**batch).loss.backward()
            total += heads.grad.abs()
            if zeroed: heads.grad = None
        np.testing.assert_allclose(importance(model, batches, mode=mode).heads, total.numpy() / 3, atol=1e-13)


def test_importance_leaves_no_trace():
    model, batch = make(BertForSequenceClassification, num_labels=3).train(), inputs()
    model.classifier.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    importance(model, [batch])
    assert model.training and all(p.grad is None for p in model.parameters())
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["classifier.weight", "classifier.bias"]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    with pytest.raises(RuntimeError):
        with at_rest(model): raise RuntimeError
    assert model.training and model.bert.pooler.dense.weight.requires_grad


def test_importance_works_where_gradients_are_off():
    model, batch = make(BertForSequenceClassification, num_labels=3), inputs()
    with torch.no_grad(): quiet = importance(model, [batch])
    np.testing.assert_array_equal(quiet.heads, importance(model, [batch]).heads)


@given(st.lists(st.floats(0, 100), min_size=12, max_size=12))
@settings(max_examples=50, deadline=None)
def test_normalising_keeps_the_order_within_a_layer(values):
    raw = np.array(values).reshape(LAYERS, HEADS)
    scaled = normalised(type("I", (), dict(heads=raw, mlps=np.arange(3.)))).heads
    assert scaled.min() >= 0 and scaled.max() <= 1
    for before, after in zip(raw, scaled):
        order = np.argsort(before, kind="stable")
        assert (np.diff(after[order]) >= -1e-12).all()


@pytest.fixture(scope="module")
def models(): return [(make(kind, num_labels=3), inputs()) for kind in KINDS]


@given(gates=gate_sets)
@settings(max_examples=40, deadline=None)
def test_the_cut_model_equals_the_gated_one(models, gates):
    for model, batch in models:
        with gate(model, *gates): gated = outputs(model, batch)
        small = smaller(model, gates)
        torch.testing.assert_close(outputs(small, batch), gated, atol=1e-5, rtol=0)
        counts = [sum(p.numel() for n, p in m.base_model.encoder.named_parameters() if p.ndim == 2) for m in (model, small)]
        assert counts[1] / counts[0] == pytest.approx(weight_share(gates, SIZE["intermediate_size"] / SIZE["hidden_size"]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_removal_keeps_the_precision(dtype):
    model = make(BertForSequenceClassification).to(dtype)
    small = smaller(model, Gates(np.eye(LAYERS, HEADS), [0, 1, 0]))
    assert {p.dtype for p in small.parameters()} == {dtype}


def test_cut_linear_equals_transformers():
    linear = torch.nn.Linear(6, 8)
    for dim, keep in ((0, torch.tensor([1, 2, 7])), (1, torch.tensor([0, 5]))):
        ours, theirs = copy.deepcopy(linear), prune_linear_layer(linear, keep, dim)
        cut_linear(ours, keep, dim)
        assert torch.equal(ours.weight, theirs.weight) and torch.equal(ours.bias, theirs.bias) and str(ours) == str(theirs)


def test_dropping_the_bias_of_an_emptied_attention():
    "keep_bias=False is what the released code does (D16): equal to the gated model with those biases at zero"
    model, batch = make(BertForSequenceClassification), inputs()
    gates = Gates([[0] * 4, [1] * 4, [0, 1, 0, 0]], [1, 1, 1])
    unbiased = copy.deepcopy(model)
    with torch.no_grad(): model.bert.encoder.layer[0].attention.output.dense.bias.copy_(torch.linspace(-1, 1, 24)); unbiased.bert.encoder.layer[0].attention.output.dense.bias.zero_()
    with gate(unbiased, *gates): expected = outputs(unbiased, batch)
    torch.testing.assert_close(outputs(smaller(model, gates, keep_bias=False), batch), expected, atol=1e-5, rtol=0)
    assert not torch.allclose(outputs(smaller(model, gates), batch), expected, atol=1e-3)


@pytest.mark.parametrize("kind", [BertForSequenceClassification, RobertaForMaskedLM, BertForPreTraining, BertForQuestionAnswering])
@pytest.mark.parametrize("keep_bias", [True, False])
def test_saved_and_loaded_is_the_same_model(tmp_path, kind, keep_bias):
    model, batch = make(kind), inputs(labels=0)
    small = smaller(model, Gates([[1, 0, 0, 1], [0] * 4, [1] * 4], [0, 1, 1]), keep_bias)
    again = load_smaller(save_smaller(small, tmp_path/"small"))
    assert type(again) is kind and torch.equal(outputs(again, batch), outputs(small, batch))
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in small.parameters())
    with pytest.raises(OSError): kind.from_pretrained(tmp_path/"small")


def test_a_cut_model_trains_saves_and_loads_in_its_precision(tmp_path):
    model = smaller(make(BertForSequenceClassification, num_labels=3), Gates(np.eye(LAYERS, HEADS), [0, 1, 1])).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    before = outputs(model.eval(), inputs()); model.train()
    model(**inputs()).loss.backward(); optimizer.step()
    model = model.eval().bfloat16()
    again = load_smaller(save_smaller(model, tmp_path/"small"))
    assert again.dtype == torch.bfloat16 and torch.equal(outputs(again, inputs()), outputs(model, inputs()))
    assert not torch.allclose(outputs(again, inputs()).float(), before, atol=1e-3)


def test_hidden_states_of_a_cut_model_stay_complete():
    small = smaller(make(BertModel), Gates([[0] * 4, [1, 0, 0, 0], [1] * 4], [0, 0, 1]))
    with torch.no_grad(): assert len(small(inputs()["input_ids"], output_hidden_states=True).hidden_states) == LAYERS + 1


def test_cut_models_are_refused_by_gates_and_a_second_cut():
    small = smaller(make(BertModel), Gates(np.ones((LAYERS, HEADS)), [1, 0, 1]))
    with pytest.raises(BadInput, match="layer 1 have been removed"): gate(small, np.ones((LAYERS, HEADS)), np.ones(LAYERS))
    with pytest.raises(BadInput, match="layer 1 have been removed"): smaller(small, Gates.full(LAYERS, HEADS))


@pytest.mark.parametrize("gates", [Gates([[1] * 4] * 3, [1, 0, 1]), Gates([[1] * 4, [0] * 4, [1] * 4], [1, 1, 1]), Gates([[0] * 4] * 3, [0, 0, 0]), Gates([[1, 0, 1, 1]] * 3, [1, 1, 1])])
@pytest.mark.parametrize("kind", [BertForSequenceClassification, RobertaForMaskedLM, DistilBertModel, MPNetModel])
def test_save_pretrained_of_a_cut_model_never_comes_back_whole(tmp_path, kind, gates):
    "A plain `from_pretrained` would fill what is gone at random"
    model = kind(kind.config_class(**{"vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40, "max_position_embeddings": 40}
                                   if kind is not DistilBertModel else dict(vocab_size=50, dim=24, n_layers=3, n_heads=4, hidden_dim=40, max_position_embeddings=40))).eval()
    small = smaller(model, gates)
    small.save_pretrained(tmp_path/"cut")
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"): kind.from_pretrained(tmp_path/"cut")
    again = load_smaller(save_smaller(small, tmp_path/"small"))
    assert torch.equal(outputs(again, inputs()), outputs(small, inputs()))


def test_what_cannot_be_loaded_again_is_not_saved(tmp_path):
    small = smaller(make(BertForSequenceClassification), Gates([[1, 0, 1, 1], [1] * 4, [0] * 4], [1, 0, 1]))
    filled = make(BertForSequenceClassification)
    filled.config.gates = small.config.gates

    class Own(BertForSequenceClassification): pass
    own = smaller(Own(small.config.__class__(**SIZE)), Gates.full(LAYERS, HEADS))
    mixed, widened = copy.deepcopy(small), copy.deepcopy(small)
    mixed.bert.embeddings.half()
    widened.classifier = torch.nn.Linear(24, 7)
    for model, message in [(filled, "cannot be loaded again: bert.encoder.layer.0.attention.output.dense.weight is .24, 24. in it, .24, 18."), (own, "must be of a class of transformers, got Own"),
                           (mixed, "is saved in one type, this one has torch.float16 and torch.float32"), (widened, "cannot be loaded again: classifier.bias is .7,. in it, .2,.")]:
        with pytest.raises(BadInput, match=message): save_smaller(model, tmp_path/"small")
        assert not list(tmp_path.iterdir())
    with pytest.raises(BadInput, match="the configuration says that 3 heads and 1 MLP are left in layer 0, the model differs"): flops(filled, 8)


def damaged(folder, name, data):
    (folder/name).chmod(0o644)
    (folder/name).write_bytes(data)
    return folder


@pytest.mark.parametrize("sealed", [True, False])
def test_damaged_folders_are_answered_with_a_sentence(tmp_path, sealed):
    "160 ways; without checksums (copied by hand) what can be told is told"
    draw, small = random.Random(0), smaller(make(BertForSequenceClassification), Gates([[1, 0, 1, 1], [1] * 4, [0] * 4], [1, 0, 1]))
    folder = save_smaller(small, tmp_path/"small")
    if not sealed: (folder/"checksums.json").unlink()
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    about = json.loads(files["config.json"])
    edits = [{name: value for name, value in about.items() if name != "gates"}, about | {"gates": {"head_mask": about["gates"]["head_mask"]}}, about | {"gates": 3}, about | {"architectures": ["pipeline"]},
             about | {"architectures": None}, about | {"architectures": ["BertModel"]}, about | {"num_hidden_layers": 2}, about | {"gates": about["gates"] | {"mlp_mask": [1, 1, 1]}}, [], about | {"dtype": "nothing"}]
    bad = [("config.json", json.dumps(edit).encode()) for edit in edits] + [("smaller.safetensors", files["smaller.safetensors"][:size]) for size in (0, 7, 100, 5000)]
    for name in ("config.json", "smaller.safetensors") * 33: bad.append((name, files[name][:(at := draw.randrange(len(files[name])))] + draw.randbytes(3) + files[name][at + 3:]))
    for name, data in bad:
        try: again = load_smaller(damaged(folder, name, data))
        except BadInput as error: assert "\n" not in str(error)
        else: assert not sealed and again.num_parameters() == small.num_parameters()
        damaged(folder, name, files[name])
    assert torch.equal(outputs(load_smaller(folder), inputs()), outputs(small, inputs()))
    with pytest.raises(BadInput, match="holds no smaller.safetensors"): load_smaller(tmp_path/"none")


def test_models_without_biases_are_cut():
    model = make(BertForSequenceClassification)
    for layer in model.bert.encoder.layer: layer.attention.self.query.bias = layer.attention.output.dense.bias = None
    gates = Gates([[1, 0, 1, 1], [0] * 4, [1] * 4], [1, 1, 0])
    with gate(model, *gates): expected = outputs(model, inputs())
    torch.testing.assert_close(outputs(smaller(model, gates), inputs()), expected, atol=1e-5, rtol=0)


def test_an_attention_run_takes_gates_of_its_own_model_only(tmp_path):
    found_on, other = (make(BertForPreTraining, seed) for seed in (0, 1))
    for name, model in (("mine", found_on), ("other", other)): model.save_pretrained(tmp_path/name)
    gates = Gates([[1, 0, 1, 1], [0, 1, 0, 1], [1] * 4], [1, 0, 1])
    base, heads = base_of(str(tmp_path/"mine")), pd.DataFrame([(layer, head) for layer in range(LAYERS) for head in range(HEADS)], columns=["layer", "head"])
    mask = gates_mask(base, gates)
    Ticket(mask, provenance_of(base, mask, gates=gates.to_json())).save(tmp_path/"run"/"ticket")
    spec = AttentionSpec(task="sst2", model=str(tmp_path/"mine"), ticket=str(tmp_path/"run"))
    assert np.array_equal(surviving_heads(spec, heads), gates.heads)
    with pytest.raises(BadInput, match="the ticket was found for other weights"): surviving_heads(replace(spec, model=str(tmp_path/"other")), heads)


@pytest.mark.parametrize("value", [{"head_mask": [[1, 0]]}, {}, [], None, 3])
def test_gates_that_are_no_gates(value):
    with pytest.raises(BadInput, match="gates must be an object of head_mask and mlp_mask"): Gates.from_json(value)


@given(gates=gate_sets)
@settings(max_examples=15, deadline=None)
def test_flops_equal_what_torch_counts(gates):
    model = make(BertModel)
    model.set_attn_implementation("eager")
    small = smaller(model, gates).requires_grad_(False)
    with FlopCounterMode(display=False) as counter, torch.no_grad(): small.encoder(torch.zeros(1, 11, SIZE["hidden_size"]))
    assert flops(small, 11) == counter.get_total_flops()


def test_speed_table_lists_every_model():
    model = make(BertModel)
    models = {"full": model, "cut": smaller(model, Gates(np.zeros((LAYERS, HEADS)), [0, 0, 1]))}
    table = speed_table(models, batch_sizes=(1, 2), tokens=8, repeats=2)
    assert list(table.index) == ["full", "cut"] and table["speed-up, batch 1"].iloc[0] == 1
    assert table["parameters"].is_monotonic_decreasing and set(latency(models, 1, 8, 1)) == set(models)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_importance_and_removal_on_a_gpu():
    model, batch = make(BertForSequenceClassification, num_labels=3), inputs()
    here = importance(model, [batch])
    model.cuda()
    there = importance(model, [batch])
    np.testing.assert_allclose(there.heads, here.heads, rtol=1e-3, atol=1e-5)
    small = smaller(model, Gates(np.eye(LAYERS, HEADS), [0, 1, 0]))
    assert {p.device.type for p in small.parameters()} == {"cuda"} and outputs(small, {k: v.cuda() for k, v in batch.items()}).isfinite().all()
