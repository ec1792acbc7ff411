"""A result belongs to its inputs: changed rows, text or weights are another run, and nothing old is lost or shared."""
import json
import os
import shutil
from importlib import metadata

import pytest

import lottery_nb as lt
from lottery_nb import inputs
from lottery_nb.baseline import data_only, local_size, materials
from lottery_nb.cli import main
from lottery_nb.files import BadInput, read_json
from lottery_nb.inputs import contents, digest_of, state_of
from lottery_nb.spec import AttentionSpec, MagnitudeSpec, RunSpec, StructuredSpec, TicketSpec
from lottery_nb.store import run_folder


@pytest.fixture
def short(tiny_model, tiny_data, tmp_path):
    "A short run on copies of the tiny model and data"
    shutil.copytree(tiny_model, tmp_path/"bert")
    shutil.copy(tiny_data, tmp_path/"reviews.csv")
    return dict(task=str(tmp_path/"reviews.csv"), model=str(tmp_path/"bert"), max_length=16, max_steps=4, batch_size=8)


def flip(path):
    "Another table of the same name and size"
    path.write_text(path.read_text().replace(",yes", ",nO!").replace(",no", ",yes").replace(",nO!", ",no"))


def other_weights(folder):
    "Other weights in the same folder"
    from safetensors.torch import load_file, save_file
    weights = load_file(folder/"model.safetensors")
    name = next(name for name in weights if name.endswith("query.weight"))
    weights[name] = weights[name] + 1
    save_file(weights, folder/"model.safetensors", metadata={"format": "pt"})


def test_a_changed_table_is_never_already_done(short, tmp_path, capsys, warm_python):
    "The command line says what changed, keeps the old result and trains a full model of its own"
    words = ["run", "ticket", "--method", "omp", "--sparsity", "0.5", "--runs", str(tmp_path/"runs")]
    words += [word for name, value in short.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert main(words) == 0
    first = {path: path.read_bytes() for path in (tmp_path/"runs").glob("*/result.json")}
    assert main(words) == 0 and "already done" in capsys.readouterr().out
    flip(tmp_path/"reviews.csv")
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "already done" not in said and f"rows changed since run {next(iter(first)).parent.name}, whose result is kept" in said
    assert all(path.read_bytes() == content for path, content in first.items())
    assert len(list((tmp_path/"runs").glob("*/result.json"))) == 2 and len(list((tmp_path/"runs"/"stages").glob("dense-*/"))) == 2


@pytest.mark.parametrize("kind", [lambda **v: TicketSpec(method="omp", **v), StructuredSpec, MagnitudeSpec, AttentionSpec], ids=["ticket", "structured", "magnitude", "attention"])
def test_every_input_of_every_template_counts(kind, short, tmp_path):
    (tmp_path/"text.txt").write_text("the film was good\n" * 100)
    make = lambda: kind(**short, text=str(tmp_path/"text.txt")).id
    ids = [make()]
    flip(tmp_path/"reviews.csv"); ids.append(make())
    other_weights(tmp_path/"bert"); ids.append(make())
    (tmp_path/"text.txt").write_text("the film was bad!\n" * 100); ids.append(make())
    (tmp_path/"bert"/"tokenizer.json").write_text((tmp_path/"bert"/"tokenizer.json").read_text() + " "); ids.append(make())
    assert len(set(ids)) == len(ids)
    (tmp_path/"unrelated.csv").write_text("text,label\n"); (tmp_path/"bert"/".cache").write_text("")
    assert make() == ids[-1]


def test_one_file_has_one_id_wherever_it_lies(short, tmp_path, monkeypatch):
    spec = RunSpec(**short)
    monkeypatch.chdir(tmp_path)
    assert RunSpec(**short | dict(task="reviews.csv", model="bert")).id == spec.id
    (tmp_path/"elsewhere").mkdir(); shutil.copy("reviews.csv", "elsewhere/reviews.csv"); shutil.copytree("bert", "elsewhere/model")
    assert RunSpec(**short | dict(task="elsewhere/reviews.csv", model="elsewhere/model")).id == spec.id


def test_a_run_goes_on_under_another_path_of_the_same_file(short, tmp_path, monkeypatch):
    first = lt.run(TicketSpec(**short, method="omp", sparsity=.5), tmp_path/"runs")
    monkeypatch.chdir(tmp_path)
    assert lt.run(TicketSpec(**short | dict(task="reviews.csv"), method="omp", sparsity=.5), tmp_path/"runs") == first


def test_data_named_by_the_environment_counts(tmp_path, monkeypatch, tiny_model):
    folder = tmp_path/"glue"/"RTE"; folder.mkdir(parents=True)
    rows = "index\tsentence1\tsentence2\tlabel\n" + "".join(f"{i}\tthe film was good\tthe meal was bad\t{('entailment', 'not_entailment')[i % 2]}\n" for i in range(8))
    for split in ("train", "dev"): (folder/f"{split}.tsv").write_text(rows)
    spec = lambda: RunSpec(task="rte", model=str(tiny_model)).id
    without = spec()
    monkeypatch.setenv("LOTTERY_NB_DATA", str(tmp_path/"glue"))
    with_data = spec()
    (folder/"dev.tsv").write_text(rows.replace("0\tthe", "0\ta", 1))
    assert len({without, with_data, spec()}) == 3
    assert RunSpec(task="rte").id == RunSpec(task="rte", model="micro").id   # the micro world reads none of it


def test_the_source_of_a_mask_counts(short, tmp_path):
    shutil.copy(short["task"], tmp_path/"others.csv")
    make = lambda: TicketSpec(**short, method="imp", source=str(tmp_path/"others.csv")).id
    before = make()
    flip(tmp_path/"others.csv")
    assert make() != before


def test_what_a_result_says_about_its_origin(short, tmp_path):
    result = lt.run(TicketSpec(**short, method="omp", sparsity=.5), tmp_path/"runs")
    assert result["data"]["rows"].keys() == {"train", "dev"} and result["data"]["classes"].keys() == {"no", "yes"} and result["data"]["dev_rows"]
    assert result["inputs"].keys() == {"rows", "model"} and result["environment"].keys() == {"python", "torch", "transformers", "lottery_nb", "device", "threads"}
    assert read_json(run_folder(TicketSpec(**short, method="omp", sparsity=.5), tmp_path/"runs")/"inputs.json") == result["inputs"]


def test_a_run_from_a_copy_that_was_never_installed_gets_to_its_end(short, monkeypatch, tmp_path):
    "A result's origin is written when all is trained: nothing that it asks may be missing then"
    known = metadata.Distribution.from_name.__func__

    def absent(kind, name):
        if name.startswith("lottery"): raise metadata.PackageNotFoundError(name)
        return known(kind, name)
    monkeypatch.setattr(metadata.Distribution, "from_name", classmethod(absent))
    result = lt.run(TicketSpec(**short, method="omp", sparsity=.5), tmp_path/"runs")
    assert result["environment"]["lottery_nb"] == lt.__version__


def test_nothing_is_hashed_twice(short, monkeypatch, tmp_path):
    "A later command reads digests from memory; one of them damaged is hashed again"
    monkeypatch.setenv("LOTTERY_NB_CACHE", str(tmp_path/"cache"))
    monkeypatch.setattr(inputs, "WORTH", 0)
    for path in [tmp_path/"reviews.csv", *(tmp_path/"bert").iterdir()]: os.utime(path, (1, 1))
    digest_of.cache_clear()
    before, hashed = contents(RunSpec(**short)), []
    original = inputs.file_digest
    monkeypatch.setattr(inputs, "file_digest", lambda path: hashed.append(path) or original(path))
    digest_of.cache_clear()
    assert contents(RunSpec(**short)) == before and hashed == []
    (tmp_path/"cache"/"digests.json").write_text("{")
    digest_of.cache_clear()
    assert contents(RunSpec(**short)) == before and len(hashed) > 1


def test_same_size_and_time_but_other_bytes_are_seen(tmp_path):
    path = tmp_path/"a.csv"
    path.write_text("good"); os.utime(path, (1, 1)); one = digest_of(path, state_of(path))
    path.write_text("evil"); os.utime(path, (1, 1))
    assert digest_of(path, state_of(path)) != one


def test_old_folders_of_the_micro_world_are_found_again():
    assert TicketSpec(task="mrpc", method="omp", sparsity=.9).id == "mrpc-omp-s90-r0-9340c9" and TicketSpec().inputs() == {}


def test_a_full_model_that_learnt_nothing_is_said(short, tmp_path):
    result = lt.run(TicketSpec(**short | dict(learning_rate=1e-12, max_steps=1), method="omp", sparsity=.5), tmp_path/"runs")
    assert result["learnt"] is (result["full_score"] > result["majority"])
    json.dumps(result, allow_nan=False)


def test_a_full_model_of_other_hub_rows_is_refused(tiny_model, tmp_path, monkeypatch):
    "Rows of the Hub are told apart by their checksum"
    from datasets import Dataset
    from lottery_nb.baseline import dense
    rows = [{"sentence": f"the film was {word}", "label": label, "idx": i} for i, (word, label) in enumerate([("good", 1), ("bad", 0)] * 8)]
    hub = {"train": rows, "validation": rows}
    monkeypatch.delenv("LOTTERY_NB_DATA", raising=False)
    monkeypatch.setattr("datasets.load_dataset", lambda *_: {split: Dataset.from_list(part) for split, part in hub.items()})
    spec = RunSpec(task="sst2", model=str(tiny_model), max_length=16, max_steps=2, batch_size=8)
    assert dense(spec, tmp_path) == dense(spec, tmp_path)
    hub["train"] = [row | {"label": 1 - row["label"]} for row in rows]
    materials.cache_clear()
    with pytest.raises(BadInput, match="the Hub's rows of sst2 changed since the full model .* was trained"): dense(spec, tmp_path)


def test_a_session_that_stays_open_reads_what_has_changed(tiny_model, tmp_path):
    "As in a notebook: the same spec again, in one process, after its table and its tokenizer have changed"
    rows = lambda number: "text,label\n" + "".join(f"the film was {word} {i},{label}\n" for i in range(number) for word, label in (("good", "yes"), ("bad", "no")))
    table, model = tmp_path/"reviews.csv", tmp_path/"model"
    shutil.copytree(tiny_model, model)
    spec = TicketSpec(task=str(table), model=str(model), method="omp", sparsity=.5, max_steps=2)
    table.write_text(rows(20))
    first = lt.run(spec, tmp_path/"runs")
    assert local_size(data_only(spec)) == len(materials(spec).data["train"])
    table.write_text(rows(30))
    second = lt.run(spec, tmp_path/"runs")
    assert first["id"] != second["id"] and sum(map(len, materials(spec).data.values())) == 60
    assert local_size(data_only(spec)) == len(materials(spec).data["train"])
    (model/"tokenizer.json").write_text("{")
    with pytest.raises(BadInput, match="the tokenizer of model"): lt.run(spec, tmp_path/"runs")
