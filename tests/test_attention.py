"Attention maps against the full tensor in float64, both architectures, back ends, removed heads and the benchmark's claims on memory"
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel, RobertaConfig, RobertaModel

from lottery_nb.attention import attention_maps, crop, eager, read_texts, token_roles, tokenize, value_norms
from lottery_nb.files import BadInput
from lottery_nb.weights import longest_input

SMALL = dict(vocab_size=50, hidden_size=24, num_hidden_layers=3, num_attention_heads=4, intermediate_size=32, max_position_embeddings=40, initializer_range=.5)


def bert(kind=BertModel, **options):
    torch.manual_seed(0)
    return kind(BertConfig(**SMALL, **options))


def roberta():
    torch.manual_seed(0)
    return RobertaModel(RobertaConfig(**SMALL, type_vocab_size=1, pad_token_id=1))


def tokens(texts=3, width=9, short=2):
    torch.manual_seed(1)
    mask = torch.ones(texts, width, dtype=torch.long)
    mask[-1, width - short:] = 0
    return dict(input_ids=torch.randint(5, 50, (texts, width)), attention_mask=mask)


def full_tensor(model, batch, layer, alpha):
    "‖α_ij f(x_j)‖ by writing out every head's vectors and summing nothing"
    with torch.no_grad(): x = model.base_model(**batch, output_hidden_states=True).hidden_states[layer]
    attention, out = model.base_model.encoder.layer[layer].attention, []
    size, weight = attention.self.attention_head_size, attention.output.dense.weight
    for head in range(alpha.shape[1]):
        rows = slice(head * size, (head + 1) * size)
        f = (x @ attention.self.value.weight[rows].T + attention.self.value.bias[rows]) @ weight[:, rows].T
        out.append((alpha[:, head, :, :, None] * f[:, None]).norm(dim=-1))
    return torch.stack(out, 1)


@pytest.mark.parametrize("make", [bert, roberta])
def test_norm_maps_equal_the_full_tensor_in_float64(make):
    model, batch = make().double().eval(), tokens()
    raw, norm = attention_maps(model, batch), attention_maps(model, batch, "norm")
    for layer in range(3): torch.testing.assert_close(norm[layer], full_tensor(model, batch, layer, raw[layer]).detach(), rtol=1e-12, atol=1e-14)


@settings(max_examples=15, deadline=None)
@given(heads=st.sampled_from([1, 2, 3, 6]), width=st.integers(2, 12), seed=st.integers(0, 99))
def test_norms_for_any_number_of_heads(heads, width, seed):
    torch.manual_seed(seed)
    model = BertModel(BertConfig(**SMALL | dict(num_attention_heads=heads, num_hidden_layers=1))).double().eval()
    batch = dict(input_ids=torch.randint(0, 50, (2, width)))
    raw, norm = attention_maps(model, batch), attention_maps(model, batch, "norm")
    torch.testing.assert_close(norm[0], full_tensor(model, batch, 0, raw[0]).detach(), rtol=1e-11, atol=1e-13)


def test_the_heads_vectors_add_up_to_the_layers_output():
    "Σ_h Σ_j α f(x_j) + b_O is what BertSelfOutput's dense layer gives: so the columns are the heads' own"
    model, batch = bert().double().eval(), tokens(short=0)
    attention, seen = model.encoder.layer[0].attention, {}
    attention.output.dense.register_forward_hook(lambda module, inputs, output: seen.update(out=output))
    alpha = attention_maps(model, batch)[0]
    with torch.no_grad():
        x = model(**batch, output_hidden_states=True).hidden_states[0]
        values = attention.self.value(x).unflatten(-1, (4, 6)).transpose(1, 2)
        columns = attention.output.dense.weight.unflatten(1, (4, 6)).permute(1, 2, 0)
        total = (alpha @ (values @ columns)).sum(1) + attention.output.dense.bias
    torch.testing.assert_close(total, seen["out"], rtol=1e-10, atol=1e-12)


def test_rows_are_the_released_slices():
    model, x = bert().double(), torch.randn(2, 5, 24, dtype=torch.double)
    attention = model.encoder.layer[1].attention
    with torch.no_grad():
        values = attention.self.value(x).unflatten(-1, (4, 6))
        released = torch.stack([(values[:, :, h] @ attention.output.dense.weight[6 * h:6 * h + 6]).norm(dim=-1) for h in range(4)], 1)
        torch.testing.assert_close(value_norms(attention.self.value, attention.output.dense, 6, x, "rows"), released)
        assert not torch.allclose(value_norms(attention.self.value, attention.output.dense, 6, x), released, rtol=.01)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", [BertModel, BertForMaskedLM, BertForSequenceClassification])
def test_any_head_any_backend_and_nothing_left_behind(kind, backend):
    model, batch = bert(kind, attn_implementation=backend), tokens()
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    maps = attention_maps(model, batch)
    assert model.training and model.config._attn_implementation == backend
    assert all(not module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(maps[0].sum(-1), torch.ones(3, 4, 9))
    assert maps[0][-1, :, :, -2:].abs().max() == 0                      # padding gets nothing


def test_sdpa_still_gives_no_maps_by_itself():
    "Guard: if transformers learns to return maps under sdpa, `eager` is no longer needed"
    with torch.no_grad(): answer = bert().eval()(**tokens(), output_attentions=True).attentions
    assert not answer or answer[0] is None


def test_the_maps_come_back_when_the_model_fails():
    model = bert()
    with pytest.raises(RuntimeError, match="broken"), eager(model): raise RuntimeError("broken")
    assert model.config._attn_implementation == "sdpa" and model.training


def test_a_model_that_gives_no_maps_is_refused():
    model = bert()
    attention = model.encoder.layer[1].attention.self
    attention.forward = lambda hidden, **rest: (hidden, None)
    with pytest.raises(BadInput, match="no attention maps in layer 1"): attention_maps(model, tokens())


def test_removed_heads_and_layers():
    "Narrower matrices give fewer heads; a layer without self-attention gives none; the others are as with a gate of zero"
    model, batch = bert().double().eval(), tokens(short=0)
    reference = attention_maps(model, batch, "norm")
    attention = model.encoder.layer[0].attention
    from transformers.pytorch_utils import prune_linear_layer
    keep = torch.arange(6, 24)
    for name in ("query", "key", "value"): setattr(attention.self, name, prune_linear_layer(getattr(attention.self, name), keep))
    attention.output.dense = prune_linear_layer(attention.output.dense, keep, dim=1)
    model.double()
    torch.testing.assert_close(attention_maps(model, batch, "norm")[0], reference[0][:, 1:])

    class Gone(torch.nn.Module):
        def forward(self, hidden, *args, **kwargs): return hidden, None
    model.encoder.layer[1].attention = Gone()
    assert [maps.shape[1] for maps in attention_maps(model, batch)] == [3, 0, 4]


def test_token_types_reach_the_model():
    model, batch = bert(), tokens()
    batch["token_type_ids"] = (torch.arange(9) > 4).long().expand(3, 9)
    off = attention_maps(model, batch, token_types=False)
    torch.testing.assert_close(off[0], attention_maps(model, {k: v for k, v in batch.items() if k != "token_type_ids"})[0])
    assert (off[0] - attention_maps(model, batch)[0]).abs().max() > 1e-3


def test_left_padding_is_cropped_too():
    model, batch = bert().eval(), tokens(texts=2, short=0)
    batch["attention_mask"][1, :3] = 0
    cut = crop(attention_maps(model, batch), batch["attention_mask"])
    assert cut[0][0].shape == (4, 9, 9) and cut[1][0].shape == (4, 6, 6)
    np.testing.assert_allclose(cut[1][0].sum(-1), 1, rtol=1e-5)


def test_roles_of_roberta_pairs():
    class Names: sep_token_id, cls_token_id = 2, 0
    special, segment = token_roles(np.array([0, 7, 2, 2, 8, 9, 2]), Names)
    assert special.tolist() == [True, False, True, True, False, False, True]
    assert segment.tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_limits():
    assert longest_input(bert().config) == 40 and longest_input(roberta().config) == 38
    attention_maps(roberta(), dict(input_ids=torch.randint(3, 50, (1, 38))))
    with pytest.raises(BadInput, match="39 tokens"): attention_maps(roberta(), dict(input_ids=torch.randint(3, 50, (1, 39))))


ASSETS = Path(os.environ.get("LOTTERY_NB_ASSETS", Path(__file__).parents[2]/"shared"/"assets"))


@pytest.mark.skipif(not (ASSETS/"models"/"wiki-bert-mini").exists(), reason="no real model: set LOTTERY_NB_ASSETS")
def test_a_real_model_alone_and_in_a_batch():
    from transformers import AutoModel, AutoTokenizer
    folder = ASSETS/"models"/"wiki-bert-mini"
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    texts = ["a witty film", "the plot of this long and winding film was dull", "no"]
    together = {text.index: text for text in read_texts(model, tokenizer, texts, "norm", batch_size=2)}
    for i, text in enumerate(texts):
        alone = next(read_texts(model, tokenizer, [text], "norm"))
        assert alone.tokens == together[i].tokens and alone.tokens[0] == "[CLS]"
        for ours, theirs in zip(alone.maps, together[i].maps): np.testing.assert_allclose(ours, theirs, atol=1e-5)
    with pytest.raises(BadInput, match="text 1 has"): tokenize(model, tokenizer, ["short", "long " * 600])
