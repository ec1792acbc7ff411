"Pools, names and fingerprints on every head we support, and guards on what transformers calls things."
import hashlib

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrize, prune
from torch.optim.swa_utils import AveragedModel
from transformers import (
    BertConfig, BertForMaskedLM, BertForPreTraining, BertForQuestionAnswering, BertForSequenceClassification, BertModel,
    RobertaConfig, RobertaForMaskedLM, RobertaForSequenceClassification, RobertaModel,
)

from lottery_nb.files import BadInput
from lottery_nb.spec import POOLS
from lottery_nb.weights import base_name, census, fingerprint, members, missing, place, prunable, resolve, tied

TINY = dict(vocab_size=40, hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=12, max_position_embeddings=20)
BERTS = [BertModel, BertForMaskedLM, BertForPreTraining, BertForQuestionAnswering, BertForSequenceClassification]
ROBERTAS = [RobertaModel, RobertaForMaskedLM, RobertaForSequenceClassification]


def make(kind):
    torch.manual_seed(0)
    return kind((BertConfig if kind in BERTS else RobertaConfig)(**TINY))


@pytest.mark.parametrize("kind", BERTS + ROBERTAS)
@pytest.mark.parametrize("pool", POOLS)
def test_pool_is_the_models_own_parameters(kind, pool):
    model = make(kind)
    weights, own = prunable(model, pool), dict(model.named_parameters())
    assert all(own[name] is weight for name, weight in weights.items())
    assert sorted([*weights, *missing(model, pool)]) == sorted(members(model, pool))
    expected = 18 + ("embeddings" in pool) + ("pooler" in pool) + 15 * ("biases" in pool) - len(missing(model, pool))
    assert len(weights) == expected == len(census(model, pool))
    assert all(base_name(name) == "pooler.dense.weight" for name in missing(model, pool))


@pytest.mark.parametrize("kinds", [BERTS, ROBERTAS])
def test_fingerprint_ignores_the_head(kinds, tmp_path):
    base = make(kinds[0])
    base.save_pretrained(tmp_path)
    prints = {fingerprint(kind.from_pretrained(tmp_path)) for kind in kinds}
    assert prints == {fingerprint(base)}


def test_fingerprint_sees_every_bit_of_embeddings_and_encoder():
    model = make(BertForSequenceClassification)
    before = fingerprint(model)
    for name, weight in model.named_parameters():
        entry = weight.data.view(torch.int32).flatten()
        entry[-1] ^= 1
        assert (fingerprint(model) != before) == base_name(name).startswith(("embeddings.", "encoder.")), name
        entry[-1] ^= 1
    assert fingerprint(model) == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fingerprint_is_of_the_values_not_of_their_type(dtype, tmp_path):
    make(BertForPreTraining).to(dtype).save_pretrained(tmp_path)
    stored, single = (BertForSequenceClassification.from_pretrained(tmp_path, dtype=kind) for kind in ("auto", torch.float32))
    assert (stored.dtype, single.dtype) == (dtype, torch.float32)
    assert fingerprint(stored) == fingerprint(single) == fingerprint(stored.double()) != fingerprint(make(BertModel))
    with torch.no_grad(): single.bert.encoder.layer[2].output.dense.bias[1] += 1e-5
    assert fingerprint(single) != fingerprint(stored)


def test_fingerprints_of_float32_stay():
    "Tickets found by earlier versions hash `NAME torch.float32 SHAPE` and the bytes"
    model, digest = make(BertModel), hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        if name.startswith("pooler"): continue
        digest.update(f"{name} torch.float32 {tuple(weight.shape)}\n".encode() + weight.detach().numpy().tobytes())
    assert fingerprint(model) == digest.hexdigest()


def test_double_precision_that_float32_cannot_hold_is_another_model():
    model = make(BertModel).double()
    before = fingerprint(model)
    with torch.no_grad(): model.encoder.layer[0].output.dense.weight[0, 0] *= 1 + 1e-12
    assert fingerprint(model) != before


class Wrapper(nn.Module):
    "As training libraries and adapters have it: the model under any name, attributes passed through"
    def __init__(self, inner):
        super().__init__()
        self.anything = inner
    def __getattr__(self, name):
        try: return super().__getattr__(name)
        except AttributeError: return getattr(super().__getattr__("anything"), name)


WRAPPERS = {"compiled": torch.compile, "parallel": nn.DataParallel, "averaged": AveragedModel, "wrapper": Wrapper, "twice": lambda m: nn.DataParallel(Wrapper(m)),
            "trunk compiled": lambda m: setattr(m, "bert", torch.compile(m.bert)) or m, "checkpointed": lambda m: setattr(m.bert.encoder.layer, "1", checkpoint_wrapper(m.bert.encoder.layer[1])) or m}


@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize("kind", [BertForSequenceClassification, BertForMaskedLM])
def test_wrapped_models_are_the_models_inside(wrap, kind):
    model = make(kind)
    identity, weights = fingerprint(model), prunable(model, "encoder+embeddings+pooler")
    wrapped = WRAPPERS[wrap](model)
    assert fingerprint(wrapped) == identity
    again = prunable(wrapped, "encoder+embeddings+pooler")
    assert list(again) == list(weights) and missing(wrapped, "encoder+pooler") == missing(model, "encoder+pooler")
    if wrap != "averaged": assert all(again[name] is weight is resolve(wrapped, name) for name, weight in weights.items())
    with torch.no_grad(): again["bert.encoder.layer.1.attention.self.value.weight"][1, 1] += 1
    assert fingerprint(wrapped) != identity


class LowRank(nn.Module):
    "As an adapter of LoRA sits in a model"
    def __init__(self, base):
        super().__init__()
        self.base_layer, self.lora_A = base, nn.Linear(base.in_features, 2, bias=False)


REPLACED = {
    "adapter": lambda layer: setattr(layer.attention.self, "query", LowRank(layer.attention.self.query)),
    "parametrized": lambda layer: parametrize.register_parametrization(layer.intermediate.dense, "weight", nn.Identity()),
    "weight norm": lambda layer: nn.utils.parametrizations.weight_norm(layer.output.dense),
    "pruned": lambda layer: prune.l1_unstructured(layer.attention.output.dense, "weight", amount=.5),
    "cut": lambda layer: setattr(layer, "intermediate", nn.Identity()),
}


@pytest.mark.parametrize("replace", REPLACED)
def test_half_a_pool_is_refused(replace):
    model = make(BertForSequenceClassification)
    REPLACED[replace](model.bert.encoder.layer[1])
    for read in (prunable, fingerprint, census, lambda model: prunable(nn.DataParallel(model), "encoder+biases")):
        with pytest.raises(BadInput, match="not the model's own, among them bert.encoder.layer.1"): read(model)


def test_a_pruned_pooler_is_not_a_missing_one():
    model = make(BertForSequenceClassification)
    prune.l1_unstructured(model.bert.pooler.dense, "weight", amount=.5)
    with pytest.raises(BadInput, match="among them bert.pooler.dense.weight"): prunable(model, "encoder+pooler")


def test_two_models_in_one_wrapper_are_refused():
    with pytest.raises(BadInput, match="ModuleList holds several models"): fingerprint(nn.ModuleList([make(BertModel), make(BertModel)]))


@pytest.mark.parametrize("change", [lambda m: m.to("meta"), lambda m: setattr(m.encoder.layer[0].output.dense, "weight", nn.Parameter(torch.ones(8, 12, dtype=torch.int8), requires_grad=False))])
def test_weights_without_values_have_no_fingerprint(change):
    model = make(BertModel)
    change(model)
    with pytest.raises(BadInput, match="θ0 needs the values of"): fingerprint(model)


def test_every_name_resolves_with_and_without_prefix():
    for kind in BERTS + ROBERTAS:
        model = make(kind)
        for name, weight in prunable(model, "encoder+biases").items():
            assert resolve(model, name) is weight is resolve(model, base_name(name))
            assert resolve(model, f"{model.base_model_prefix}.{base_name(name)}") is weight
    with pytest.raises(BadInput, match="has no weight named 'bert.encoder.layer.0"):
        resolve(make(RobertaModel), "bert.encoder.layer.0.output.dense.weight")


def test_place_covers_every_member():
    model = make(BertForSequenceClassification)
    for pool in POOLS:
        for name in prunable(model, pool):
            family, layer = place(name)
            assert family and (layer is None) == (family in ("embeddings", "pooler"))


@pytest.mark.parametrize("kind, decoder", [(BertForMaskedLM, "cls.predictions.decoder.weight"), (BertForPreTraining, "cls.predictions.decoder.weight"), (RobertaForMaskedLM, "lm_head.decoder.weight")])
def test_guard_decoder_is_tied_to_the_word_embeddings(kind, decoder):
    model = make(kind)
    assert decoder in tied(model)[f"{model.base_model_prefix}.embeddings.word_embeddings.weight"]
    assert resolve(model, decoder) is resolve(model, "embeddings.word_embeddings.weight")


def test_guard_every_matrix_of_the_encoder_is_in_the_pool():
    for kind in (BertModel, RobertaModel):
        model = make(kind)
        matrices = {name for name, weight in model.encoder.named_parameters(prefix="encoder") if weight.ndim == 2}
        assert matrices == set(prunable(model))


def test_unknown_architecture_names_the_supported_ones():
    with pytest.raises(BadInput, match="architecture must be one of bert, roberta, xlm-roberta, camembert, electra, distilbert, mpnet; got 'Linear'"):
        prunable(torch.nn.Linear(2, 2))
