"""Every row of the table of architectures, against oracles that know nothing of it; and a guard on each thing a row says about transformers."""
import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (AlbertConfig, AlbertForMaskedLM, AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForQuestionAnswering,
                          AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification, ElectraForPreTraining,
                          ModernBertConfig, PreTrainedTokenizerFast)

from lottery_nb import weights
from lottery_nb.attention import attention_maps, read_texts
from lottery_nb.baseline import target_spec, theta0
from lottery_nb.files import BadInput, read_json
from lottery_nb.gates import Gates, gate, importance, load_smaller, open_gates, save_smaller, sensitivity, smaller, weight_share
from lottery_nb.masks import hold
from lottery_nb.methods import find_ticket, retrain
from lottery_nb.models import check_length, eager_attention, load_config, load_model, parameter_counts, part_of, shuffle_layers, start_weights
from lottery_nb.scores import magnitude
from lottery_nb.select import topk_mask
from lottery_nb.spec import POOLS, StructuredSpec, TicketSpec
from lottery_nb.structured import compared_gates, gates_result, mlp_ratio
from lottery_nb.subnetworks import gates_mask, survival_shares
from lottery_nb.tamt import (MaskSettings, Scores, draw_batch, head_parameters, initial_scores, last_layer_at, mask_losses, masked_forward,
                             objective_losses, pretraining_losses, start_mask, train_mask, trained_masks)
from lottery_nb.tasks import get_task
from lottery_nb.tickets import Ticket, provenance_of
from lottery_nb.training import head_at, load_weights, save_weights
from lottery_nb.weights import (ARCHITECTURES, BERT_FAMILIES, POOLER, architecture, base_name, encoder_layers, fingerprint, longest_input, members, missing, mlm_head,
                                own_parameters, part, place, prunable, resolve, tied)

KINDS = list(ARCHITECTURES)
WORDS = "good fine bad poor film meal the was a".split()
SHAPE = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=4, initializer_range=.2, vocab_size=14)


def config(kind, **more):
    "A small configuration of any row, with a padding token where its family has it"
    width = {architecture_row(kind).mlp_size: 24}
    special = dict(pad_token_id=1, bos_token_id=0, eos_token_id=2, type_vocab_size=1) if kind in ("roberta", "xlm-roberta", "camembert") else {}
    special |= dict(embedding_size=8) if kind == "electra" else {}
    return AutoConfig.for_model(kind, **SHAPE | width | dict(max_position_embeddings=34) | special | more)


def architecture_row(kind): return ARCHITECTURES[kind]


def make(kind, auto=AutoModelForSequenceClassification, seed=0, **more):
    torch.manual_seed(seed)
    model = auto.from_config(config(kind, **more)).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1: p.add_(.2 * torch.randn_like(p))   # fresh biases are 0 and would hide mistakes
    return model


def tokenizer_of(kind):
    "Whole words, with the padding token where the configuration has it"
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"] if config(kind).pad_token_id == 1 else ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
    vocab = {word: i for i, word in enumerate(special + WORDS)}
    words = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[(s, vocab[s]) for s in ("<s>", "</s>")])
    names = ["input_ids", "attention_mask"] + ["token_type_ids"] * architecture_row(kind).segments
    return PreTrainedTokenizerFast(tokenizer_object=words, cls_token="<s>", sep_token="</s>", pad_token="<pad>", unk_token="<unk>", mask_token="<mask>",
                                   model_max_length=32, model_input_names=names)


def inputs(kind, examples=5, tokens=9, labels=2):
    torch.manual_seed(1)
    pad = config(kind).pad_token_id
    batch = dict(input_ids=torch.randint(5, 14, (examples, tokens)), attention_mask=torch.ones(examples, tokens, dtype=torch.long))
    batch["attention_mask"][::2, 6:] = 0
    batch["input_ids"][::2, 6:] = pad
    return batch | ({"labels": torch.randint(0, labels, (examples,))} if labels else {})


def outputs(model, batch):
    with torch.no_grad(): return model(**{k: v for k, v in batch.items() if k != "labels"})[0]


SOME = Gates([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]], [1, 0, 0])
SETS = [SOME, Gates(np.ones((3, 4)), [0, 1, 0]), Gates(np.eye(3, 4), np.ones(3)), Gates(np.zeros((3, 4)), np.zeros(3))]
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    "A folder of each architecture, as a pre-trained model lies on a disk"
    made = {}

    def folder(kind):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            make(kind, AutoModelForMaskedLM).save_pretrained(made[kind])
            tokenizer_of(kind).save_pretrained(made[kind])
        return made[kind]
    return folder


# Names

@kinds
@pytest.mark.parametrize("pool", POOLS)
def test_pools_are_the_models_own_parameters(kind, pool):
    for auto in (AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoModelForQuestionAnswering):
        model = make(kind, auto)
        weights, own = prunable(model, pool), dict(model.named_parameters(remove_duplicate=False))
        assert all(own[name] is weight for name, weight in weights.items())
        assert len(weights) == 18 + ("embeddings" in pool) + ("pooler" in pool and POOLER in map(base_name, own)) + 15 * ("biases" in pool)
        assert {base_name(name) for name in missing(model, pool)} <= {POOLER}
        for name, weight in weights.items():
            assert resolve(model, base_name(name)) is weight and place(name)[0].removesuffix(" bias") in (*BERT_FAMILIES, "embeddings", "pooler")


@kinds
def test_guard_every_matrix_of_a_layer_is_in_the_pool(kind):
    model = make(kind, AutoModel)
    matrices = {name for name, weight in model.named_parameters() if weight.ndim == 2 and "layer." in name}
    assert matrices == set(prunable(model))
    assert [place(name) for name in prunable(model)] == [(family, layer) for layer in range(3) for family in BERT_FAMILIES]


@kinds
def test_guard_the_pooler_is_where_the_row_says(kind):
    model = make(kind, AutoModel)
    assert (POOLER in dict(model.named_parameters())) == ("pooler" in architecture(model).body.values())


@kinds
def test_fingerprint_sees_every_bit_but_pooler_and_head(kind, tmp_path):
    model = make(kind)
    model.base_model.save_pretrained(tmp_path)
    before = fingerprint(model)
    assert {fingerprint(auto.from_pretrained(tmp_path)) for auto in (AutoModel, AutoModelForMaskedLM, AutoModelForQuestionAnswering)} == {before}
    for name, weight in model.named_parameters():
        entry = weight.data.view(torch.int32).flatten()
        entry[-1] ^= 1
        assert (fingerprint(model) != before) == (name.startswith(f"{model.base_model_prefix}.") and "pooler" not in name), name
        entry[-1] ^= 1
    assert fingerprint(model) == before


@kinds
def test_parts_add_up(kind):
    counts = parameter_counts(make(kind))
    assert all(counts[name] for name in ("embeddings", "encoder", "head")) and sum(counts.values()) == 2 * counts["total"]
    assert {part_of(make(kind, AutoModel), name) for name, _ in make(kind, AutoModel).named_parameters()} <= {"embeddings", "encoder", "pooler"}


# Loading, lengths, starts

@kinds
def test_dropout_reaches_every_dropout_module(kind, folders):
    for task in ("sst2", "squad", "mlm"):
        net = load_model(str(folders(kind)), get_task(task), 0, dropout=.37)
        assert {module.p for module in net.modules() if isinstance(module, torch.nn.Dropout)} == {.37}
        assert net.config.num_hidden_layers == 3 and load_config(str(folders(kind)), get_task(task)).to_dict() != net.config.to_dict()


@kinds
@pytest.mark.parametrize("pad", [0, 1, 3])
def test_guard_the_longest_input_is_read_and_one_more_is_not(kind, pad):
    model = make(kind, AutoModel, pad_token_id=pad)
    longest = longest_input(model.config)
    table = model.base_model.embeddings.position_embeddings
    assert longest == table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
    read = lambda tokens: model(input_ids=torch.full((1, tokens), 9))
    with torch.no_grad(): read(longest)
    with torch.no_grad(), pytest.raises((IndexError, RuntimeError)): read(longest + 1)
    assert check_length(model, longest) == longest
    with pytest.raises(BadInput, match=f"max_length must be at most {longest}, the positions of this {kind} model; got {longest + 1}"): check_length(model, longest + 1)


@kinds
def test_layers_are_shuffled_together(kind):
    net = make(kind)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    order = shuffle_layers(net, 3)
    inside = {place(name): name for name in prunable(net)}
    for name, p in net.named_parameters():
        family, layer = place(name) if name in inside.values() else (None, None)
        assert torch.equal(p, before[inside[family, order[layer]] if family else name])
    start_weights(net, "shuffle-within", 0), start_weights(net, "reinit", 0)


# Gates and removal

def switched_off(model, gates):
    "The oracle: a copy whose weights make closed heads and MLPs add nothing"
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for layer, heads, mlp in zip(encoder_layers(twin), *gates):
            output, last = (part(layer, architecture(twin).families[family]) for family in ("attention_output", "output"))
            output.weight[:, torch.tensor(np.repeat(~heads, 4))] = 0
            if not mlp: last.weight.zero_(); last.bias.zero_()
    return twin


@kinds
@pytest.mark.parametrize("back_end", ["eager", "sdpa"])
def test_guard_every_closed_gate_changes_the_output_and_equals_surgery(kind, back_end):
    model, batch = make(kind), inputs(kind)
    if back_end == "sdpa" and kind == "mpnet": pytest.skip("MPNet has eager attention only")
    model.set_attn_implementation(back_end)
    whole = outputs(model, batch)
    for index in range(15):
        flat = np.ones(15, bool); flat[index] = False
        gates = Gates(flat[:12].reshape(3, 4), flat[12:])
        with gate(model, *gates): closed = outputs(model, batch)
        assert (closed - whole).abs().max() > 1e-6, index
        torch.testing.assert_close(closed, outputs(switched_off(model, gates), batch), atol=1e-5, rtol=0)
    assert torch.equal(outputs(model, batch), whole)


@kinds
@pytest.mark.parametrize("gates", SETS, ids=["some", "mlps", "heads", "nothing"])
def test_removal_equals_gates_and_comes_back_from_a_folder(kind, gates, tmp_path):
    for auto, labels in ((AutoModelForSequenceClassification, 2), (AutoModelForMaskedLM, 0)):
        model, batch = make(kind, auto).double(), inputs(kind, labels=labels)
        with gate(model, *gates): gated = outputs(model, batch)
        small = smaller(model, gates)
        assert (outputs(small, batch) - gated).abs().max() <= 1e-12
        again = load_smaller(save_smaller(small, tmp_path/auto.__name__))
        assert torch.equal(outputs(again, batch), outputs(small, batch))
        matrices = lambda net: sum(p.numel() for name, p in net.base_model.named_parameters() if p.ndim == 2 and "layer." in name)
        assert matrices(small) / matrices(model) == pytest.approx(weight_share(gates, mlp_ratio(model)), abs=1e-12)
        assert gates_mask(model, gates).density == pytest.approx(weight_share(gates, mlp_ratio(model)), abs=1e-12)
        with pytest.raises(BadInput, match="have been removed"): open_gates(small)


@kinds
def test_a_cut_model_without_bias_trains(kind):
    small = smaller(make(kind), SOME, keep_bias=False).train()
    small(**inputs(kind)).loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in small.parameters())


@kinds
def test_importance_equals_finite_differences(kind):
    model, batch = make(kind).double(), inputs(kind, examples=3)
    measured, step = sensitivity(model, batch, open_gates(model), each=False)[0], 1e-5

    def loss(index, by):
        flat = torch.ones(15, dtype=torch.double); flat[index] += by
        with torch.no_grad(), gate(model, flat[:12].view(3, 4), flat[12:]): return model(**batch).loss.item()
    for index in range(15): assert measured[index].item() == pytest.approx((loss(index, step) - loss(index, -step)) / (2*step), rel=1e-4, abs=1e-9)
    raw = importance(model, [batch])
    assert raw.heads.shape == (3, 4) and (raw.heads > 0).all() and (raw.mlps > 0).all()


@kinds
def test_survival_counts_the_heads_own_weights(kind):
    model = make(kind)
    heads, mlps = survival_shares(gates_mask(model, SOME), 4)
    assert np.array_equal(heads, SOME.heads) and np.array_equal(mlps, SOME.mlps)


# Attention maps

@kinds
def test_maps_raw_and_norm_weighted(kind):
    "Against the attentions that transformers gives, and vectors written out"
    model, batch = make(kind, AutoModel).double(), inputs(kind, labels=0)
    raw, norm = (attention_maps(model, batch, which) for which in ("raw", "norm"))
    with torch.no_grad(), eager_attention(model): asked = model(**batch, output_attentions=True, output_hidden_states=True)
    for number, layer in enumerate(encoder_layers(model)):
        torch.testing.assert_close(raw[number], asked.attentions[number])
        value, output = (part(layer, architecture(model).families[family]) for family in ("value", "attention_output"))
        vectors = torch.stack([value(asked.hidden_states[number])[..., 4*h:4*h + 4] @ output.weight[:, 4*h:4*h + 4].T for h in range(4)], 1)
        torch.testing.assert_close(norm[number], (raw[number][..., None] * vectors[:, :, None]).norm(dim=-1).detach(), rtol=1e-9, atol=1e-12)
    assert [maps.shape[1] for maps in attention_maps(smaller(model, SOME), batch, "norm")] == [2, 0, 4]
    torch.testing.assert_close(attention_maps(smaller(model, SOME), batch, "norm")[0], norm[0][:, [0, 2]])


@kinds
def test_texts_are_read_alone_as_in_a_batch(kind):
    model, tokenizer = make(kind, AutoModel), tokenizer_of(kind)
    texts = ["the film was good", "a meal", "the meal was a bad meal"]
    together = {text.index: text for text in read_texts(model, tokenizer, texts, "norm")}
    for i, text in enumerate(texts):
        alone = next(read_texts(model, tokenizer, [text], "norm"))
        for ours, theirs in zip(alone.maps, together[i].maps): np.testing.assert_allclose(ours, theirs, atol=1e-5)


# The MLM head, and mask training

@kinds
def test_guard_the_mlm_head_is_all_that_follows_the_trunk(kind):
    model, batch = make(kind, AutoModelForMaskedLM), inputs(kind, labels=0)
    with torch.no_grad():
        hidden, logits = model.base_model(**batch).last_hidden_state, model(**batch).logits
        torch.testing.assert_close(mlm_head(model)(hidden), logits)
        where = batch["attention_mask"].bool()
        with head_at(model, where): torch.testing.assert_close(model(**batch).logits, logits[where], atol=1e-5, rtol=1e-5)
    inside = {id(p) for p in model.base_model.parameters()} | {id(p) for p in head_parameters(model).values()}
    assert inside >= {id(p) for p in model.parameters()}
    decoder = model.get_output_embeddings().weight
    assert decoder is resolve(model, "embeddings.word_embeddings.weight") and any(name for names in tied(model).values() for name in names)


@kinds
def test_a_model_without_the_head_is_refused(kind):
    with pytest.raises(BadInput, match="MLM needs a head that predicts words, .*ForSequenceClassification has none"): mlm_head(make(kind))


@kinds
def test_guard_the_last_layer_at_some_tokens(kind):
    model, batch = make(kind, AutoModelForMaskedLM), inputs(kind, labels=0)
    where = torch.rand(5, 9) < .4
    with torch.no_grad():
        whole = model.base_model(**batch).last_hidden_state
        with last_layer_at(model, where): few = model.base_model(**batch).last_hidden_state
    torch.testing.assert_close(few[0], whole[where], atol=1e-5, rtol=1e-5)


@kinds
@pytest.mark.parametrize("objective", ["mlm", "kd", "mlm+kd", "attention"])
def test_mask_training(kind, objective, tmp_path):
    model, tokenizer = make(kind, AutoModelForMaskedLM), tokenizer_of(kind)
    text = torch.randint(5, 14, (40, 12), generator=torch.Generator().manual_seed(0))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    pool = "encoder+embeddings" if objective == "mlm+kd" else "encoder"
    found = train_mask(model, text, tokenizer, MaskSettings(objective=objective, sparsity=.5, steps=4, batch_size=8, learning_rate=1e-2, pool=pool), tmp_path/"tamt")
    assert found.mask.sparsity == pytest.approx(.5, abs=1e-3) and bool(found.head) == ("mlm" in objective)
    start = start_mask(prunable(model, pool), .5)
    assert found.mask != start and (found.history[objective.split("+")] > 0).all(axis=None)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    losses = mask_losses(model, found.mask, text, tokenizer, head=found.head, decoder="both")
    assert losses["mlm_loss"] > 0 and losses["kd_loss"] > 0


@kinds
def test_losses_of_a_mask_on_both_sides_are_those_of_the_held_model(kind):
    model, tokenizer = make(kind, AutoModelForMaskedLM), tokenizer_of(kind)
    text, mask = torch.randint(5, 14, (8, 12), generator=torch.Generator().manual_seed(0)), start_mask(prunable(model, "encoder+embeddings"), .5)
    found, everything = mask_losses(model, mask, text, tokenizer, decoder="both"), {name: torch.ones_like(kept) for name, kept in mask.items()}
    assert len(mask) == 19 and found["mlm_loss"] != pytest.approx(mask_losses(model, mask, text, tokenizer)["mlm_loss"], rel=1e-4)
    with hold(model, mask): assert mask_losses(model, everything, text, tokenizer)["mlm_loss"] == pytest.approx(found["mlm_loss"], rel=1e-5)


@kinds
@pytest.mark.parametrize("decoder", ["input", "both"])
def test_masked_gradients_equal_autograd(kind, decoder):
    "The fused backward and the last layer at masked tokens against plain autograd of the whole"
    quiet = dict.fromkeys(architecture_row(kind).dropout, 0.0)
    model = make(kind, AutoModelForMaskedLM, **quiet).double().requires_grad_(False)
    scores = Scores({name: value.double() for name, value in initial_scores(start_mask(prunable(model, "encoder+embeddings"), .5)).items()}, .5)
    batch = draw_batch(torch.randint(5, 14, (16, 12), generator=torch.Generator().manual_seed(0)), 0, 8, 0, tokenizer_of(kind))
    grads = {}
    for way in ("fused", "plain"):
        for p in scores.values.values(): p.grad = None
        if way == "fused": objective_losses(model, scores, batch, MaskSettings(sparsity=.5, decoder=decoder))["mlm"].backward()
        else:
            read = {name: batch[name] for name in ("input_ids", "attention_mask", "labels", *["token_type_ids"] * architecture(model).segments)}
            with masked_forward(model, scores, decoder, plain=True): model(**read).loss.backward()
        grads[way] = {name: p.grad.clone() for name, p in scores.values.items()}
    for name, plain in grads["plain"].items():
        if decoder == "both" or "embeddings" not in name: torch.testing.assert_close(grads["fused"][name], plain, atol=1e-9, rtol=1e-6)


@kinds
def test_guard_hidden_states_and_maps_count(kind):
    model = make(kind, AutoModel)
    with torch.no_grad(), eager_attention(model): answer = model(**inputs(kind, labels=0), output_hidden_states=True, output_attentions=True)
    assert len(answer.hidden_states) == 4 and [tuple(maps.shape) for maps in answer.attentions] == [(5, 4, 9, 9)] * 3
    assert torch.equal(answer.hidden_states[-1], answer.last_hidden_state)


# Tickets and weights

@kinds
def test_ticket_round_trip(kind, tmp_path):
    model = make(kind)
    mask = topk_mask(magnitude(prunable(model, "encoder+embeddings")), .6)
    Ticket(mask, provenance_of(model, mask, method="omp")).save(tmp_path/"ticket")
    ticket = Ticket.load(tmp_path/"ticket")
    assert ticket.mask == mask and ticket.provenance["model_type"] == kind
    other = make(kind, AutoModelForMaskedLM)
    other.base_model.load_state_dict(model.base_model.state_dict(), strict=False)
    with ticket.apply(other): assert all((resolve(other, name)[~kept] == 0).all() for name, kept in mask.items())


@kinds
def test_weights_come_back_with_and_without_the_head(kind, tmp_path):
    model = make(kind)
    save_weights(model, tmp_path/"w")
    again = load_weights(make(kind, seed=1), tmp_path/"w")
    assert all(torch.equal(p, dict(model.named_parameters())[name]) for name, p in again.named_parameters())
    mlm = make(kind, AutoModelForMaskedLM, seed=1)
    head = {name: p.detach().clone() for name, p in own_parameters(mlm).items() if not name.startswith(f"{mlm.base_model_prefix}.")}
    assert fingerprint(load_weights(mlm, tmp_path/"w", head=False)) == fingerprint(model)
    assert all(torch.equal(dict(mlm.named_parameters())[name], value) for name, value in head.items())
    with pytest.raises(BadInput, match="does not hold the weights of this"): load_weights(mlm, tmp_path/"w")
    save_weights(make(kind, AutoModelForMaskedLM, seed=2), tmp_path/"mlm")
    assert fingerprint(load_weights(model, tmp_path/"mlm", head=False)) == fingerprint(make(kind, AutoModelForMaskedLM, seed=2))


def test_trunks_of_other_models_are_not_put_back(tmp_path):
    save_weights(make("bert"), tmp_path/"w")
    for other in (make("electra"), make("bert", hidden_size=32)):
        with pytest.raises(BadInput, match="does not hold the weights of this"): load_weights(other, tmp_path/"w", head=False)


# Outside the table

@pytest.mark.parametrize("made", [AlbertConfig(), ModernBertConfig()], ids=["albert", "modernbert"])
def test_other_architectures_are_refused_without_a_hint(made, tmp_path):
    made.save_pretrained(tmp_path)
    (tmp_path/"model.safetensors").touch()
    with pytest.raises(BadInput) as error: load_config(str(tmp_path), get_task("sst2"))
    assert str(error.value) == f"architecture of model {tmp_path} must be one of {', '.join(KINDS)}; got {made.model_type!r}"


def test_other_models_are_refused_everywhere():
    model = AlbertForMaskedLM(AlbertConfig(vocab_size=20, embedding_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32))
    for ask in (prunable, members, fingerprint, encoder_layers, mlm_head, open_gates, lambda m: longest_input(m.config), parameter_counts, head_parameters,
                lambda m: attention_maps(m, dict(input_ids=torch.ones(1, 2, dtype=torch.long)))):
        with pytest.raises(BadInput) as error: ask(model)
        assert "architecture must be one of" in str(error.value) and "did you mean" not in str(error.value)


def test_an_architecture_without_an_mlm_head_is_refused_at_once(folders, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "mpnet", ARCHITECTURES["mpnet"]._replace(mlm=()))
    with pytest.raises(BadInput, match=r"masked language modelling needs a head that predicts words, a mpnet model \(.*\) has none"):
        load_config(str(folders("mpnet")), get_task("mlm"))
    load_config(str(folders("mpnet")), get_task("sst2"))


def test_a_roberta_without_a_padding_token_is_refused():
    with pytest.raises(BadInput, match="counts positions from pad_token_id"): longest_input(config("roberta", pad_token_id=None))


# From a spec: data of one's own, a folder of one's own, every method

@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    "A text and a label that follows from one word; and running text of the same words"
    folder = tmp_path_factory.mktemp("reviews")
    rows = [f"the {thing} was {word}" for thing in ("film", "meal") for word in ("good", "fine", "bad", "poor")]
    (folder/"reviews.csv").write_text("text,label\n" + "".join(f"{row},{int(row[-4:] in ('good', 'fine'))}\n" for row in rows * 6))
    (folder/"text.txt").write_text("\n".join(rows * 12))
    return folder


@kinds
@pytest.mark.parametrize("method, own", [("omp", {}), ("imp", dict(step=.25)), ("tamt-kd", dict(mask_steps=3)), ("tamt-mlm", dict(mask_steps=3))])
def test_every_method_finds_and_retrains_a_ticket(kind, method, own, folders, reviews, tmp_path):
    spec = TicketSpec(task=str(reviews/"reviews.csv"), model=str(folders(kind)), text=str(reviews/"text.txt"), method=method, sparsity=.5, max_steps=3, batch_size=8,
                      max_length=16, learning_rate=1e-2, pool="encoder+embeddings", **own | (dict(mask_max_length=16, mask_batch_size=8) if "tamt" in method else {}))
    ticket = find_ticket(spec, tmp_path)
    assert ticket.mask.sparsity == pytest.approx(.5, abs=1e-3) and len(ticket.mask) == 19
    assert (ticket.provenance["model_type"], ticket.provenance["method"]) == (kind, method)
    assert ticket.provenance["fingerprint"] == fingerprint(theta0(target_spec(spec)))
    ticket.save(tmp_path/"ticket")
    retrained = retrain(spec, Ticket.load(tmp_path/"ticket"), tmp_path/"run", tmp_path)
    assert 0 <= read_json(retrained/"scores.json")["accuracy"] <= 1
    if "mlm" in method: assert pretraining_losses(spec, ticket, tmp_path)["mlm_loss"] > 0


def test_files_without_the_head_are_refused_before_the_text_is_read(folders, tmp_path):
    "ELECTRA's discriminators have no head that predicts words"
    torch.manual_seed(0)
    ElectraForPreTraining(config("electra")).save_pretrained(tmp_path/"electra")
    tokenizer_of("electra").save_pretrained(tmp_path/"electra")
    spec = TicketSpec(task="rte", model=str(tmp_path/"electra"), text=str(tmp_path/"none.txt"), method="tamt-mlm", sparsity=.5, mask_steps=3, mask_max_length=16, data_dir=str(tmp_path))
    with pytest.raises(BadInput, match="has no MLM head .generator_.*give head_steps"): trained_masks(spec, tmp_path)


@kinds
def test_s_pruning_from_a_spec(kind, folders, reviews, tmp_path):
    spec = StructuredSpec(task=str(reviews/"reviews.csv"), model=str(folders(kind)), max_steps=3, batch_size=8, max_length=16, threshold=.5)
    kinds = compared_gates(spec, tmp_path)
    result = gates_result(spec, kinds, tmp_path)
    assert set(kinds) == {"good", "random", "bad"} and 0 <= result["score"] <= 1
    assert kinds["good"].heads.sum() < 12 or kinds["good"].mlps.sum() < 3


def test_a_new_architecture_is_one_row(monkeypatch):
    class OwnConfig(BertConfig): model_type = "own-bert"

    torch.manual_seed(0)
    model = BertForSequenceClassification(OwnConfig(**SHAPE | dict(intermediate_size=24))).eval()
    with pytest.raises(BadInput, match="got 'own-bert'$"): prunable(model)
    monkeypatch.setitem(ARCHITECTURES, "own-bert", ARCHITECTURES["bert"])
    batch = inputs("bert")
    with gate(model, *SOME): gated = outputs(model, batch)
    torch.testing.assert_close(outputs(smaller(model, SOME), batch), gated, atol=1e-5, rtol=0)
    assert len(prunable(model)) == 18 and len(attention_maps(model, {k: v for k, v in batch.items() if k != "labels"}, "norm")) == 3


# The table is the only place that knows

def test_no_other_module_names_the_insides_of_an_architecture():
    "`language` and `micro` make two models of their own; `masks` and `tickets` quote names"
    inside = r"encoder\.layer|transformer\.layer|attention\.(self|output|attn|q_lin)|intermediate\.dense|\.lm_head|\.cls\b|q_lin|model_type [!=]=|set_attn_implementation|intermediate_size"
    allowed = {"weights": ".", "micro": ".", "models": "net.set_attn_implementation", "_modidx": "."}
    found = [f"{path.stem}: {line.strip()}" for path in sorted(Path(weights.__file__).parent.glob("*.py")) for line in path.read_text().splitlines()
             if re.search(inside, line) and not re.search(allowed.get(path.stem, "^$"), line)]
    assert found == []
