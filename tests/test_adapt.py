"""An MLM head for a model that has none: refused in silence, trained once, resumed to the same bytes"""
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from lottery_nb import adapt, training
from lottery_nb.adapt import head_spec, start_of, with_head
from lottery_nb.baseline import theta0
from lottery_nb.files import BadInput
from lottery_nb.models import load_model, load_tokenizer
from lottery_nb.plan import pieces
from lottery_nb.spec import RunSpec, TicketSpec
from lottery_nb.tamt import trained_masks
from lottery_nb.tasks import get_task, load_data


@pytest.fixture(scope="module")
def headless(tmp_path_factory):
    "The micro-BERT's trunk as a model folder of its own, and a text in its language"
    root = tmp_path_factory.mktemp("headless")
    AutoModel.from_pretrained(load_model("micro", get_task("mlm"), 0).config._name_or_path).save_pretrained(root/"bert")
    load_tokenizer("micro").save_pretrained(root/"bert")
    texts = load_data(RunSpec(task="mlm"))["train"]
    (root/"text.txt").write_text("\n\n".join(texts[i]["text"] for i in range(600)))
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LOTTERY_NB_CACHE", str(tmp_path/"cache"))
    with_head.cache_clear()


def spec_of(headless, **values):
    return RunSpec(**dict(task="sst2", model=str(headless/"bert"), text=str(headless/"text.txt")) | values)


def test_a_random_head_is_refused_in_one_sentence(headless, tmp_path):
    with pytest.raises(BadInput, match=r"has no MLM head .*give head_steps, and a text, to train one first"):
        load_model(str(headless/"bert"), get_task("mlm"), 0)
    spec = TicketSpec(model=str(headless/"bert"), text=str(headless/"text.txt"), data_dir=str(headless), method="tamt-mlm", mask_steps=2, mask_max_length=32)
    with pytest.raises(BadInput, match="give head_steps"): trained_masks(spec, tmp_path)


def test_the_head_learns_and_the_trunk_stays(headless):
    folder = with_head(head_spec(spec_of(headless, head_steps=30)))
    about = json.loads((folder/"head.json").read_text())
    assert about["loss_after"] < about["loss_before"] - .3 and about["steps"] == 30 and not about["trunk"] and about["passes"] >= 1
    old, new = load_file(headless/"bert"/"model.safetensors"), load_file(folder/"model.safetensors")
    trunk = {name.removeprefix("bert."): value for name, value in new.items() if name.startswith("bert.")}
    assert trunk and all(torch.equal(old[name], value) for name, value in trunk.items())
    assert with_head(head_spec(spec_of(headless, task="mrpc", seed=5, head_steps=30))) == folder   # shared by tasks and seeds


def test_every_run_starts_from_the_adapted_trunk(headless):
    frozen, moved = (spec_of(headless, head_steps=4, head_trunk=trunk, data_dir="") for trunk in (False, True))
    plain = load_file(headless/"bert"/"model.safetensors")
    for spec, same in ((frozen, True), (moved, False)):
        net = load_model(start_of(spec), get_task("sst2"), 0)
        assert torch.equal(net.get_parameter("bert.encoder.layer.0.attention.self.query.weight"), plain["encoder.layer.0.attention.self.query.weight"]) == same


def test_the_loss_along_the_training_and_what_it_did_to_the_trunk(headless):
    about = {trunk: json.loads((with_head(head_spec(spec_of(headless, head_steps=20, head_trunk=trunk)))/"head.json").read_text())
             for trunk in (False, True)}
    for kept in about.values():
        assert list(kept["losses"]) == ["0", *map(str, range(2, 21, 2))]
        assert kept["losses"]["0"] == kept["loss_before"] > kept["losses"]["10"] > kept["losses"]["20"] == kept["loss_after"]
    assert about[False]["moved"] == 0 and set(about[False]["jaccard"].values()) == {1.}
    assert 0 < about[True]["moved"] < 1 and all(0 < about[True]["jaccard"][sparsity] < 1 for sparsity in ("0.5", "0.7", "0.9"))


@pytest.mark.parametrize("died", [2, 4, 7], ids=["on the way", "half-way", "at the end"])
def test_a_killed_training_of_a_head_ends_in_the_same_bytes(headless, tmp_path, monkeypatch, died):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)
    spec, calls = head_spec(spec_of(headless, head_steps=6, head_trunk=True)), []
    bytes_of = lambda folder: [(folder/name).read_bytes() for name in ("model.safetensors", "head.json")]
    whole = bytes_of(with_head(spec))
    monkeypatch.setenv("LOTTERY_NB_CACHE", str(tmp_path/"other"))
    with_head.cache_clear()
    real = adapt.evaluate
    def dies(*args):
        calls.append(1)
        if len(calls) == died: raise KeyboardInterrupt
        return real(*args)
    monkeypatch.setattr(adapt, "evaluate", dies)
    with pytest.raises(KeyboardInterrupt): with_head(spec)
    assert bytes_of(with_head(spec)) == whole and not (with_head(spec)/"evaluations.json").exists()
    assert died < len(calls) <= died + 7   # it was judged again, as often as a whole training is at most


def test_a_text_that_is_too_short(headless, tmp_path):
    (tmp_path/"short.txt").write_text((headless/"text.txt").read_text()[:2000])
    with pytest.raises(BadInput, match="less than one batch"): with_head(head_spec(spec_of(headless, text=str(tmp_path/"short.txt"), head_steps=5)))


@pytest.mark.parametrize("values, said", [(dict(head_steps=-1), "head_steps"), (dict(head_trunk=True), "head_trunk needs head_steps above 0")])
def test_fields_are_checked(values, said):
    with pytest.raises(BadInput, match=said): RunSpec(**values)


def test_the_plan_counts_it_once(headless):
    specs = [TicketSpec(model=str(headless/"bert"), text=str(headless/"text.txt"), task=task, max_steps=3, method="omp", head_steps=7) for task in ("sst2", "mrpc")]
    heads = {piece.key: piece.steps for spec in specs for piece in pieces(spec) if piece.kind == "MLM head"}
    assert list(heads.values()) == [7]
    assert not [piece for piece in pieces(TicketSpec(max_steps=3)) if piece.kind == "MLM head"]


def test_theta0_is_the_adapted_model(headless):
    spec = RunSpec(task="mlm", model=str(headless/"bert"), text=str(headless/"text.txt"), head_steps=3)
    assert theta0(spec).get_output_embeddings() is not None
