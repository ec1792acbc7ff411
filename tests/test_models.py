"""Loading models: the same bytes every time, refusals, altered starts, and guards on what transformers does."""
import ast
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (BertConfig, BertForMaskedLM, BertForPreTraining, BertForSequenceClassification, BertModel, GPT2Config, GPT2LMHeadModel,
                          RobertaConfig, RobertaForMaskedLM)

from lottery_nb import models
from lottery_nb.files import BadInput
from lottery_nb.models import (check_length, eager_attention, load_config, load_model, load_tokenizer, model_source, parameter_counts, quiet, reinit,
                               shuffle_layers, shuffle_within, start_weights)
from lottery_nb.tasks import get_task
from lottery_nb.weights import prunable

SIZE = dict(vocab_size=30, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, max_position_embeddings=20)


def saved(folder, kind=BertForMaskedLM, config=None, seed=0):
    "A random model in a folder"
    torch.manual_seed(seed)
    with quiet(): kind(config or BertConfig(**SIZE)).save_pretrained(folder)
    return str(folder)


def weights(net): return {name: weight.detach().clone() for name, weight in net.named_parameters()}


def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


ROBERTA = RobertaConfig(**SIZE | dict(max_position_embeddings=22), pad_token_id=1)


@pytest.mark.parametrize("task", ["sst2", "mnli", "stsb", "squad", "mlm"])
@pytest.mark.parametrize("kind, config", [(BertForMaskedLM, None), (RobertaForMaskedLM, ROBERTA)], ids=["bert", "roberta"])
def test_same_arguments_same_bytes(tmp_path, kind, config, task):
    folder = saved(tmp_path/"m", kind, config)
    torch.manual_seed(1)
    first = weights(load_model(folder, get_task(task), seed=7))
    torch.manual_seed(2); torch.rand(5)
    state = torch.get_rng_state()
    second = weights(load_model(folder, get_task(task), seed=7))
    assert same(first, second)
    assert torch.equal(torch.get_rng_state(), state)   # and the caller's randomness is left alone
    third = weights(load_model(folder, get_task(task), seed=8))
    differing = {name for name in first if not torch.equal(first[name], third[name])}
    assert not any(".encoder." in name or ".embeddings." in name for name in differing)
    assert bool(differing) == (task != "mlm")


def test_outputs_follow_the_task(tmp_path):
    folder = saved(tmp_path/"m")
    ids = torch.randint(5, 30, (2, 6))
    assert load_model(folder, get_task("mnli"), 0)(ids).logits.shape == (2, 3)
    assert load_model(folder, get_task("squad"), 0)(ids).start_logits.shape == (2, 6)
    assert load_model(folder, get_task("mlm"), 0)(ids).logits.shape == (2, 6, 30)
    score = load_model(folder, get_task("stsb"), 0)
    out = score(ids, labels=torch.tensor([1., 4.]))
    assert torch.isclose(out.loss, ((out.logits[:, 0] - torch.tensor([1., 4.]))**2).mean())


def test_pooler_comes_from_the_files_where_they_have_one(tmp_path):
    folder = saved(tmp_path/"m", BertForPreTraining)
    kept = load_file(tmp_path/"m"/"model.safetensors")["bert.pooler.dense.weight"]
    nets = [load_model(folder, get_task("sst2"), seed) for seed in (0, 1)]
    assert all(torch.equal(net.bert.pooler.dense.weight, kept) for net in nets)
    assert not torch.equal(nets[0].classifier.weight, nets[1].classifier.weight)


def test_a_bare_trunk_loads(tmp_path):
    folder = saved(tmp_path/"m", BertModel)
    assert load_model(folder, get_task("sst2"), 0).config.num_labels == 2


@pytest.mark.parametrize("labels", [2, 5])
def test_the_head_comes_from_the_seed_even_where_the_files_have_one(tmp_path, labels):
    plain = load_model(saved(tmp_path/"a"), get_task("sst2"), 3)
    tuned = load_model(saved(tmp_path/"b", BertForSequenceClassification, BertConfig(**SIZE, num_labels=labels)), get_task("sst2"), 3)
    assert tuned.classifier.weight.shape == (2, 16)
    again = load_model(str(tmp_path/"b"), get_task("sst2"), 3)
    assert torch.equal(tuned.classifier.weight, again.classifier.weight)
    assert plain.classifier.bias.eq(0).all() and tuned.classifier.bias.eq(0).all()


def test_head_has_the_spread_of_berts_initialisation(tmp_path):
    folder = saved(tmp_path/"m", config=BertConfig(**SIZE | dict(hidden_size=128, num_attention_heads=4)))
    pooler = load_model(folder, get_task("sst2"), 0).bert.pooler.dense.weight
    assert abs(pooler.std().item() - .02) < .001 and abs(pooler.mean().item()) < .001


def test_half_precision_files_become_float32(tmp_path):
    folder = saved(tmp_path/"m")
    file = tmp_path/"m"/"model.safetensors"
    save_file({name: value.half() for name, value in load_file(file).items()}, file, metadata={"format": "pt"})
    assert {weight.dtype for weight in load_model(folder, get_task("sst2"), 0).parameters()} == {torch.float32}


def test_dropout(tmp_path):
    folder = saved(tmp_path/"m")
    net = load_model(folder, get_task("sst2"), 0, dropout=.37)
    assert {module.p for module in net.modules() if isinstance(module, torch.nn.Dropout)} == {.37}
    assert net.config.attention_probs_dropout_prob == .37 and not net.training
    assert load_model(folder, get_task("sst2"), 0).config.hidden_dropout_prob == .1


class Evil:
    "Runs a command when unpickled"
    def __reduce__(self): return (os.mkdir, ("owned",))


def test_old_weight_files_are_read_without_running_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = saved(tmp_path/"m")
    reference = weights(load_model(folder, get_task("sst2"), 0))
    file = tmp_path/"m"/"pytorch_model.bin"
    torch.save(load_file(tmp_path/"m"/"model.safetensors"), file)
    (tmp_path/"m"/"model.safetensors").unlink()
    assert same(weights(load_model(folder, get_task("sst2"), 0)), reference)
    torch.save({"bert.embeddings.word_embeddings.weight": Evil()}, file)
    with pytest.raises(BadInput, match="the weights of model .* cannot be loaded"): load_model(folder, get_task("sst2"), 0)
    assert not (tmp_path/"owned").exists()


def test_refusals_name_the_model(tmp_path):
    folder = saved(tmp_path/"m")
    (tmp_path/"m"/"config.json").write_text('{"model_type": "be')
    with pytest.raises(BadInput, match="the configuration of model .*/m cannot be loaded: .*JSON"): load_config(folder, get_task("sst2"))
    (tmp_path/"m"/"config.json").write_text('{"model_type": "nonsense"}')
    with pytest.raises(BadInput, match="the configuration of model .*/m cannot be loaded"): load_config(folder, get_task("sst2"))
    with quiet(): GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=10)).save_pretrained(tmp_path/"gpt2")
    with pytest.raises(BadInput, match="architecture of model .*/gpt2 must be one of bert, roberta, xlm-roberta, camembert, electra, distilbert, mpnet; got 'gpt2'"): load_config(str(tmp_path/"gpt2"), get_task("sst2"))


def test_files_of_another_shape_are_refused(tmp_path):
    folder = saved(tmp_path/"m")
    config = json.loads((tmp_path/"m"/"config.json").read_text())
    (tmp_path/"m"/"config.json").write_text(json.dumps(config | {"hidden_size": 32}))
    with pytest.raises(BadInput, match="lacks .* of the weights that BertForSequenceClassification needs"): load_model(folder, get_task("sst2"), 0)


def test_more_layers_than_the_files_hold_are_refused(tmp_path):
    folder = saved(tmp_path/"m")
    config = json.loads((tmp_path/"m"/"config.json").read_text())
    (tmp_path/"m"/"config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(BadInput, match="lacks 16 of the weights"): load_model(folder, get_task("sst2"), 0)


def test_no_mlm_head_no_mlm(tmp_path):
    with pytest.raises(BadInput, match="has no MLM head .* give head_steps"): load_model(saved(tmp_path/"m", BertModel), get_task("mlm"), 0)


def relabelled(path, change):
    "A weight file with other names or more weights"
    state = change(load_file(path))
    save_file({name: value.contiguous() for name, value in state.items()}, path, metadata={"format": "pt"})


@pytest.mark.parametrize("task", ["sst2", "mlm"])
@pytest.mark.parametrize("name", ["bert.encoder.layer.0.attention.self.distance_embedding.weight", "bert.embeddings.more.weight", "bert.encoder.layer.1.attention.self.query.weight_mask"])
def test_weights_of_the_trunk_without_a_place_are_refused(tmp_path, name, task):
    "Relative positions (transformers < 5), for one: without them it is another model"
    folder = saved(tmp_path/"m")
    relabelled(tmp_path/"m"/"model.safetensors", lambda state: state | {name: torch.randn(39, 8)})
    with pytest.raises(BadInput, match=f"has 1 weights that .* has no place for, among them {name}"): load_model(folder, get_task(task), 0)


def test_fewer_layers_than_the_files_hold_are_refused(tmp_path):
    folder = saved(tmp_path/"m")
    config = json.loads((tmp_path/"m"/"config.json").read_text())
    (tmp_path/"m"/"config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    with pytest.raises(BadInput, match="has 16 weights that BertForSequenceClassification has no place for, among them bert.encoder.layer.2"): load_model(folder, get_task("sst2"), 0)


def test_other_heads_and_old_position_numbers_may_stay_in_the_files(tmp_path):
    folder = saved(tmp_path/"m", BertForPreTraining)
    reference = weights(load_model(folder, get_task("sst2"), 0))
    relabelled(tmp_path/"m"/"model.safetensors", lambda state: state | {"bert.embeddings.position_ids": torch.arange(20)[None], "classifier.weight": torch.ones(2, 16), "qa_outputs.bias": torch.ones(2)})
    assert same(weights(load_model(folder, get_task("sst2"), 0)), reference)
    load_model(folder, get_task("mlm"), 0)


def test_a_tokenizer_larger_than_the_embedding_is_refused(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path/"m")
    tokenizer = load_tokenizer(str(folder))
    tokenizer.add_tokens(["superb"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(BadInput, match="has tokens that its embedding of 14 rows lacks, up to 'superb' with number 14"): load_tokenizer(str(folder))


@pytest.mark.parametrize("kind", ["made_up", "bert"])
def test_code_in_a_folder_is_never_asked_for_nor_run(tiny_model, tmp_path, monkeypatch, kind):
    folder = shutil.copytree(tiny_model, tmp_path/"m")
    for name in ("config.json", "tokenizer_config.json"):
        about = json.loads((folder/name).read_text())
        about["auto_map"] = {"AutoConfig": "code.Config", "AutoModelForSequenceClassification": "code.Model", "AutoTokenizer": [None, "code.Tokenizer"]}
        (folder/name).write_text(json.dumps(about | ({"model_type": kind} if name == "config.json" else {"tokenizer_class": "Tokenizer"})))
    (folder/"code.py").write_text(f"open({str(tmp_path/'owned')!r}, 'w')\nclass Config: pass\nModel = Tokenizer = Config\n")
    monkeypatch.setattr("builtins.input", answer(AssertionError("prompted")))
    for load in (load_tokenizer, lambda model: load_config(model, get_task("sst2")), lambda model: load_model(model, get_task("sst2"), 0)):
        try: load(str(folder))
        except BadInput as error: assert "cannot be loaded" in str(error) and "\n" not in str(error)
        else: assert kind == "bert"
    assert not (tmp_path/"owned").exists()


def test_no_call_leaves_the_question_of_remote_code_open():
    "`trust_remote_code` left out means: ask at the terminal"
    for path in Path(models.__file__).parent.glob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "from_pretrained"]
        for call in calls:
            given = {word.arg: word.value for word in call.keywords}
            assert isinstance(given.get("trust_remote_code"), ast.Constant) and given["trust_remote_code"].value is False, f"{path.name}:{call.lineno}"


def answer(error):
    "A Hub that always answers with one error"
    def ask(*_, **__): raise error
    return ask


def test_hub_names(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError
    monkeypatch.setattr(huggingface_hub, "model_info", answer(RepositoryNotFoundError.__new__(RepositoryNotFoundError)))
    with pytest.raises(BadInput, match="'someone/nothing' is neither a local folder nor on the Hugging Face Hub; expected a local folder"): model_source("someone/nothing")
    monkeypatch.setattr(huggingface_hub, "model_info", answer(OSError("no route")))
    with pytest.raises(BadInput, match=r"Hub cannot be reached \(no route\)"): model_source("bert-base-uncased")
    monkeypatch.setattr(huggingface_hub, "model_info", lambda *_, **__: object())
    assert model_source("bert-base-uncased") == "bert-base-uncased"
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: "/cache/config.json")
    monkeypatch.setattr(huggingface_hub, "model_info", answer(AssertionError("asked although cached")))
    assert model_source("bert-base-uncased") == "bert-base-uncased"


def test_micro_names(monkeypatch, tmp_path):
    monkeypatch.setattr(models, "pretrained", lambda architecture: tmp_path/architecture)
    assert [model_source(name) for name in ("micro", "micro-roberta")] == [str(tmp_path/"bert"), str(tmp_path/"roberta")]


def test_tokenizers(tiny_model, tmp_path):
    assert load_tokenizer(str(tiny_model)).tokenize("the film") == ["the", "film"]
    broken = shutil.copytree(tiny_model, tmp_path/"broken")
    (broken/"tokenizer.json").write_text("{")
    with pytest.raises(BadInput, match="the tokenizer of model .*broken cannot be loaded"): load_tokenizer(str(broken))
    with pytest.raises(BadInput, match="model folder no/such/model does not exist"): load_tokenizer("no/such/model")


def test_quiet_restores_after_an_error():
    from transformers.utils import logging
    before = logging.get_verbosity()
    with pytest.raises(KeyError):
        with quiet(): raise KeyError("x")
    assert logging.get_verbosity() == before and logging.is_progress_bar_enabled()


def test_loading_prints_nothing(tmp_path, capfd):
    load_model(saved(tmp_path/"m"), get_task("sst2"), 0)
    assert "".join(capfd.readouterr()) == ""


def test_positions():
    with torch.device("meta"):
        bert, roberta = BertModel(BertConfig()), RobertaForMaskedLM(RobertaConfig(max_position_embeddings=514, pad_token_id=1))
    assert check_length(bert, 512) == check_length(roberta, 512) == 512
    for net in (bert, roberta):
        with pytest.raises(BadInput, match="max_length must be at most 512"): check_length(net, 513)
    roberta.config.pad_token_id = None
    with pytest.raises(BadInput, match="counts positions from pad_token_id, which its config lacks"): check_length(roberta, 16)


def test_roberta_really_has_that_many_positions():
    net = RobertaForMaskedLM(ROBERTA).eval()
    assert net(torch.randint(5, 30, (1, 20))).logits.shape[1] == 20
    with pytest.raises((IndexError, RuntimeError)): net(torch.randint(5, 30, (1, 21)))


def test_counts_of_bert_base():
    with torch.device("meta"): net = BertModel(BertConfig())
    assert parameter_counts(net) == {"embeddings": 23_837_184, "encoder": 85_054_464, "pooler": 590_592, "head": 0, "total": 109_482_240}


# Guards: what this library relies on, and would otherwise go wrong without a word

def test_guard_head_mask_is_swallowed_without_effect():
    net = BertModel(BertConfig(**SIZE)).eval()
    ids = torch.randint(5, 30, (1, 6))
    assert torch.equal(net(ids).last_hidden_state, net(ids, head_mask=torch.zeros(3, 2)).last_hidden_state)


@pytest.mark.parametrize("kind, config", [(BertForMaskedLM, BertConfig(**SIZE)), (RobertaForMaskedLM, ROBERTA)], ids=["bert", "roberta"])
def test_guard_maps_only_from_eager(kind, config):
    net, ids = kind(config).eval(), torch.randint(5, 30, (2, 6))
    assert net.config._attn_implementation == "sdpa"
    with quiet(): assert not net(ids, output_attentions=True).attentions
    fast = net(ids).logits
    with eager_attention(net): maps, slow = net(ids, output_attentions=True).attentions, net(ids).logits
    assert [tuple(m.shape) for m in maps] == [(2, 2, 6, 6)]*3
    assert torch.allclose(slow, fast, atol=1e-5) and net.config._attn_implementation == "sdpa"


def test_eager_attention_is_checked(monkeypatch):
    net = BertModel(BertConfig(**SIZE)).eval()
    monkeypatch.setattr(net, "set_attn_implementation", lambda kind: None)
    with pytest.raises(RuntimeError, match="BertModel does not switch to eager attention"), eager_attention(net): pass


# Starts

@pytest.mark.parametrize("seed", range(12))
def test_layers_are_permuted_together(seed):
    net = BertForSequenceClassification(BertConfig(**SIZE))
    before = weights(net)
    order = shuffle_layers(net, seed)
    assert sorted(order) == [0, 1, 2] and order != [0, 1, 2]
    moved = prunable(net, "encoder")
    for name, weight in weights(net).items():
        layer = name.split("layer.")[1][0] if name in moved else None
        origin = name if layer is None else name.replace(f"layer.{layer}", f"layer.{order[int(layer)]}")
        assert torch.equal(weight, before[origin])
    assert len(moved) == 18


def test_one_layer_cannot_be_shuffled():
    net = BertForSequenceClassification(BertConfig(**SIZE | dict(num_hidden_layers=1)))
    with pytest.raises(BadInput, match="start shuffle-layers needs a model with at least 2 layers, got 1"): start_weights(net, "shuffle-layers", 0)


def test_shuffle_within_keeps_each_matrix_values():
    net = BertForSequenceClassification(BertConfig(**SIZE))
    before, inside = weights(net), prunable(net, "encoder")
    shuffle_within(net, 0)
    for name, weight in weights(net).items():
        if name in inside: assert torch.equal(weight.flatten().sort().values, before[name].flatten().sort().values) and not torch.equal(weight, before[name])
        else: assert torch.equal(weight, before[name])


@pytest.mark.parametrize("start", ["reinit", "shuffle-layers", "shuffle-within"])
def test_starts_depend_on_the_seed_alone(start):
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(5)
        net = BertForMaskedLM(BertConfig(**SIZE | dict(num_hidden_layers=6)))
        torch.rand(len(results))
        state = torch.get_rng_state()
        results.append(weights(start_weights(net, start, seed)))
        assert torch.equal(torch.get_rng_state(), state)
        assert net.cls.predictions.decoder.weight is net.bert.embeddings.word_embeddings.weight   # still tied
    assert same(results[0], results[1]) and not same(results[0], results[2])


def test_reinit_is_a_fresh_model():
    net = BertForSequenceClassification(BertConfig(**SIZE))
    reinit(net, 3)
    torch.manual_seed(3)
    assert same(weights(net), weights(BertForSequenceClassification(BertConfig(**SIZE))))


def test_real_model(assets):
    folder = str(assets/"models"/"wiki-bert-mini")
    tokenizer, net = load_tokenizer(folder), load_model(folder, get_task("mlm"), 0)
    batch = tokenizer("Paris is the capital of [MASK].", return_tensors="pt")
    place = (batch["input_ids"][0] == tokenizer.mask_token_id).nonzero().item()
    best = tokenizer.convert_ids_to_tokens(net(**batch).logits[0, place].topk(20).indices.tolist())
    assert "france" in best, best
    counts = parameter_counts(load_model(folder, get_task("sst2"), 0))
    assert counts["encoder"] > 3_100_000 and counts["pooler"] == 256*256 + 256
