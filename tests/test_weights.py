"Pools, names and fingerprints on every head we support, and guards on what transformers calls things."
import pytest
import torch
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


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_fingerprint_of_other_types(dtype):
    assert fingerprint(make(BertModel).to(dtype)) != fingerprint(make(BertModel))


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
