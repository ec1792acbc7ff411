"Pattern generator, CNN, training that survives a kill, rules, label files and the committed labels"
import json
import subprocess
import time
from pathlib import Path

import numpy as np
import papermill
import pandas as pd
import pytest
import torch
import warm
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file
from sklearn import metrics

from lottery_nb import heads, labels, patterns
from lottery_nb.cli import main, read_fields
from lottery_nb.files import BadInput, write_json
from lottery_nb.grid import read_grid
from lottery_nb.patterns import CLASSES, PatternCNN, synthetic, synthetic_map
from lottery_nb.spec import make_spec


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(CLASSES), length=st.integers(8, 128), seed=st.integers(0, 2 ** 32 - 1))
def test_every_made_up_map_is_attention(name, length, seed):
    one = synthetic_map(name, length, np.random.default_rng(seed))
    assert one.shape == (length, length) and one.dtype == np.float32
    assert one.min() >= 0 and np.isfinite(one).all()
    np.testing.assert_allclose(one.sum(1), 1, atol=1e-5)


def test_a_set_holds_every_class_and_many_lengths_and_is_the_same_again():
    maps, names = synthetic(500, seed=4)
    again, _ = synthetic(500, seed=4)
    other, _ = synthetic(500, seed=5)
    assert set(pd.Series(names).value_counts()) == {100}
    assert min(map(len, maps)) < 11 and max(map(len, maps)) > 115
    assert all(np.array_equal(a, b) for a, b in zip(maps, again)) and not any(a.shape == b.shape and np.array_equal(a, b) for a, b in zip(maps, other))


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12), batch=st.integers(1, 8))
def test_an_answer_depends_on_its_map_only(sizes, batch):
    rng, cnn = np.random.default_rng(0), PatternCNN(3)
    maps = [rng.dirichlet(np.ones(size), size) for size in sizes]
    names, together = cnn.predict(maps, batch_size=batch)
    np.testing.assert_allclose(together, np.concatenate([cnn.predict([one])[1] for one in maps]), atol=1e-5)
    assert names == [CLASSES[i] for i in together.argmax(1)]


def test_scale_does_not_matter_but_place_does():
    "Norm-weighted maps are some multiple of attention; a diagonal moved aside is another picture"
    cnn, one = PatternCNN(1), synthetic_map("diagonal", 30, np.random.default_rng(0))
    np.testing.assert_allclose(cnn.predict([one])[1], cnn.predict([37 * one])[1], atol=1e-5)
    assert np.abs(cnn.predict([one])[1] - cnn.predict([np.roll(one, 9, axis=1)])[1]).max() > 1e-4


def test_the_architecture_is_the_papers():
    convolutions = [(layer.in_channels, layer.out_channels, layer.kernel_size[0]) for layer in PatternCNN().body if isinstance(layer, torch.nn.Conv2d)]
    assert convolutions == [(1, 16, 3), (16, 16, 3), (16, 32, 3), (32, 32, 3), (32, 64, 3), (64, 64, 3), (64, 16, 1), (16, 5, 1)]


def test_no_maps_no_answers():
    assert PatternCNN().predict([])[0] == []


def test_an_all_zero_map_is_read():
    assert np.isfinite(PatternCNN().predict([np.zeros((5, 5))])[1]).all()


TRAINING = """
import sys, time
from lottery_nb.patterns import synthetic, train_cnn
maps, names = synthetic(60, lengths=(8, 12))
train_cnn(maps, names, sys.argv[1], epochs=6, after=lambda epoch, cnn: (print(epoch, flush=True), time.sleep(float(sys.argv[2]))))
"""


def test_kill_9_and_resume_gives_the_same_bytes(tmp_path):
    run = lambda folder, pause: subprocess.Popen([warm.command("python"), "-c", TRAINING, str(tmp_path/folder), pause], stdout=subprocess.PIPE, text=True)
    process = run("killed", "60")
    assert process.stdout.readline() == "1\n"
    warm.kill(process)
    again = run("killed", "0").communicate()[0]
    assert again.split() == ["2", "3", "4", "5", "6"]
    run("straight", "0").communicate()
    assert (tmp_path/"killed"/"training.safetensors").read_bytes() == (tmp_path/"straight"/"training.safetensors").read_bytes()


def test_saved_without_pickle_and_the_same_in_float64(tmp_path):
    cnn, maps = PatternCNN(2), synthetic(5, lengths=(20, 30))[0]
    cnn.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert set(load_file(tmp_path/"model.safetensors")) == set(cnn.state_dict())
    twin = PatternCNN.load(tmp_path).double()
    exact = np.concatenate([twin(patterns.prepare([one]).double()).softmax(-1).detach().numpy() for one in maps])
    np.testing.assert_allclose(cnn.predict(maps)[1], exact, atol=1e-5)


def test_figures_of_merit_are_sklearns():
    rng = np.random.default_rng(0)
    right, said = (list(rng.choice(CLASSES, 200)) for _ in range(2))
    table = patterns.f1_table(right, said)
    for average in ("macro", "weighted"): assert table.f1[average] == pytest.approx(metrics.f1_score(right, said, average=average))
    assert table.maps["weighted"] == 200
    assert patterns.f1_table(["block"], ["block"]).index.tolist() == ["block", "macro", "weighted"]


def test_calibration_of_one_who_knows():
    rng = np.random.default_rng(0)
    sure = rng.uniform(.5, 1, 20_000)
    probabilities = np.zeros((20_000, 5)); probabilities[:, 1], probabilities[:, 0] = sure, 1 - sure
    names = np.where(rng.random(20_000) < sure, "diagonal", "vertical")
    table = patterns.calibration(list(names), probabilities)
    np.testing.assert_allclose(table.right, table.probability, atol=.03)


def test_study_looks_at_the_test_set_once(monkeypatch):
    maps, names = synthetic(60, lengths=(8, 12))
    _, test = patterns.train_test_split(np.arange(60), test_size=.2, random_state=0, stratify=names)
    held_out, trained = {maps[i].tobytes() for i in test}, []
    original = patterns.train_cnn
    monkeypatch.setattr(patterns, "train_cnn", lambda some, *args, **options: trained.extend(one.tobytes() for one in some) or original(some, *args, **options))
    result = patterns.study(maps, names, folds=2, epochs=1)
    assert not held_out & set(trained) and result["table"].maps["weighted"] == 12


@settings(max_examples=25, deadline=None)
@given(length=st.integers(1, 40), seed=st.integers(0, 999), scale=st.floats(1e-6, 1e6))
def test_a_packed_map_comes_back(length, seed, scale):
    one = (scale * np.random.default_rng(seed).random((length, length)) ** 4).astype(np.float32)
    back = labels.unpack_map(labels.pack_map(one))
    np.testing.assert_allclose(np.sqrt(back / one.max()), np.sqrt(one / one.max()), atol=.51 / 31 + 1e-4)


def record(**changes):
    return dict(model="toy", task="films", row=1, kind="raw", layer=0, head=2, special="0 9", map=labels.pack_map(np.eye(10)), label="diagonal") | changes


def test_csv_and_json_lines_say_the_same(tmp_path):
    rows = [record(), record(head=3, special="0 4 9", label="block")]
    pd.DataFrame(rows).to_csv(tmp_path/"a.csv", index=False)
    for row in rows: labels.append_record(tmp_path/"a.jsonl", row)
    csv, lines = (labels.read_records(tmp_path/name) for name in ("a.csv", "a.jsonl"))
    assert [labels.identity(row) for row in csv] == [labels.identity(row) for row in lines]
    assert all(np.array_equal(a["map"], b["map"]) for a, b in zip(csv, lines))
    assert labels.roles(csv[1])[1].tolist() == [0] * 5 + [1] * 5


@pytest.mark.parametrize("changes, message", [
    (dict(label="diag"), "did you mean 'diagonal'"), (dict(label=None), "label of record 1"), (dict(map=None), "has no map"),
    (dict(map="10:1:AAAA"), "cannot be read"), (dict(layer=None), "has no layer"),
])
def test_bad_records(tmp_path, changes, message):
    labels.append_record(tmp_path/"a.jsonl", record(**changes))
    with pytest.raises(BadInput, match=message): labels.read_records(tmp_path/"a.jsonl")


LABELLING = """
import sys, time
from lottery_nb.labels import append_record
for i in range(10 ** 6): append_record(sys.argv[1], {"number": i, "filling": "x" * 3000})
"""


def test_killed_while_labelling_loses_nothing_that_was_answered(tmp_path):
    path = tmp_path/"labels.jsonl"
    process = subprocess.Popen([warm.command("python"), "-c", LABELLING, str(path)])
    while not path.exists() or path.stat().st_size < 20_000: time.sleep(.01)
    warm.kill(process)
    before = list(labels.json_lines(path))
    labels.append_record(path, {"number": -1})
    after = list(labels.json_lines(path))
    assert [row["number"] for row in before] == list(range(len(before)))
    assert after[:-1] == before and after[-1] == {"number": -1}


def test_kappa_of_two_annotators_is_statsmodels():
    from statsmodels.stats.inter_rater import cohens_kappa
    rng = np.random.default_rng(0)
    first = [record(head=i, label=str(label)) for i, label in enumerate(rng.choice(CLASSES, 80))]
    second = [one | dict(label=one["label"] if rng.random() < .7 else str(rng.choice(CLASSES))) for one in first[::-1]][5:]
    result = labels.annotator_agreement(first, second)
    assert result["maps"] == 75
    assert result["kappa"] == pytest.approx(cohens_kappa(result["table"].to_numpy()).kappa)


@pytest.fixture(scope="module")
def run_words(tiny_model, tiny_data, tmp_path_factory):
    "What makes an attention run tiny, and its runs folder"
    runs = str(tmp_path_factory.mktemp("attention")/"runs")
    PatternCNN(0).save(Path(runs)/"cnn")
    return ["--task", str(tiny_data), "--model", str(tiny_model), "--max-length", "16", "--max-steps", "3", "--texts", "5", "--shortest", "6", "--cnn", f"{runs}/cnn"], runs


def test_a_run_with_the_survivors_of_a_structured_run(run_words, tiny_model, tiny_data, tmp_path, warm_python):
    words, runs = run_words
    from lottery_nb.gates import Gates
    from lottery_nb.spec import StructuredSpec
    from lottery_nb.structured import gates_ticket
    gates = Gates([[1, 0], [1, 1]], [1, 1])
    gates_ticket(StructuredSpec(task=str(tiny_data), model=str(tiny_model)), gates).save(Path(runs)/"some-structured-run"/"ticket")
    published = tmp_path/"shares.json"
    published.write_text(json.dumps({"Fine-tuned model": {"CoLA": {"attention": {"other": 1.}}}}))
    assert main(["run", "attention", *words, "--ticket", "some-structured-run", "--published", str(published), "--runs", runs]) == 0
    result = json.loads(next(Path(runs).glob("*attention*/result.json")).read_text())
    assert result["texts"] == 5 and set(result["shares"]) == {f"{heads} {model} {kind}" for heads in ("all", "surviving") for model in ("pre-trained", "fine-tuned") for kind in ("raw", "norm")}
    assert all(sum(shares.values()) == pytest.approx(1) for shares in result["shares"].values())
    assert set(result["correlations"]) == {"raw", "norm"}


def test_a_killed_run_keeps_the_tables_it_had(run_words, monkeypatch):
    words, runs = run_words
    spec = make_spec("attention", read_fields("attention", [*words, "--seed", "3"]))
    original, calls = heads.name_heads, []
    def mortal(*args, **options):
        calls.append(1)
        if len(calls) == 3: raise KeyboardInterrupt
        return original(*args, **options)
    monkeypatch.setattr(heads, "name_heads", mortal)
    with pytest.raises(KeyboardInterrupt): heads.named_heads(spec, runs)
    named = heads.named_heads(spec, runs)
    assert len(calls) == 3 + 2                              # two tables were kept, two were missing
    assert named.groupby(["model", "kind"]).size().tolist() == [5 * 4] * 4


@pytest.mark.parametrize("provenance, message", [({}, "must come from a structured run"), ({"gates": {"head_mask": [[1] * 3] * 3, "mlp_mask": [1] * 3}}, "gates for 3 × 3 heads, the model has 2 × 2")])
def test_a_ticket_that_says_nothing_about_these_heads(tmp_path, provenance, message):
    from lottery_nb.masks import Mask
    from lottery_nb.tickets import Ticket
    Ticket(Mask({"a": torch.ones(2, 2, dtype=torch.bool)}), provenance).save(tmp_path/"ticket")
    named = pd.DataFrame([dict(layer=layer, head=head) for layer in range(2) for head in range(2)])
    with pytest.raises(BadInput, match=message): heads.surviving_heads(make_spec("attention", {"ticket": str(tmp_path/"ticket")}), named)


def test_annotating_from_the_command_line(tiny_model, tiny_data, tmp_path, capsys):
    out = tmp_path/"ann.jsonl"
    words = ["annotate", "--model", str(tiny_model), "--task", str(tiny_data), "--maps", "6", "--shortest", "6", "--out", str(out)]
    assert main([*words, "--kind", "norms"]) == 2 and not out.exists()
    assert main(words) == 0 and "jupyter lab" in capsys.readouterr().out
    drawn = list(labels.json_lines(tmp_path/"ann.maps.jsonl"))
    code = "".join(json.loads((tmp_path/"ann.ipynb").read_text())["cells"][1]["source"])
    exec(code.replace("\n\nannotation_page(", "\n\npage = annotation_page("), shown := {})
    shown["page"]._handle_custom_msg({"do": "label", "label": "diagonal"}, [])
    assert [record["label"] for record in labels.read_records(out)] == ["diagonal"]
    assert main(words) == 0 and list(labels.json_lines(tmp_path/"ann.maps.jsonl")) == drawn      # resumes, draws nothing new
    assert main([*words, "--compare", str(out)]) == 0 and "kappa" in capsys.readouterr().out


def test_correlation_is_pearsons_and_its_null_is_centred():
    rng = np.random.default_rng(0)
    share, lives = rng.random(144), rng.random(144) < .4
    named = pd.DataFrame([dict(text=t, layer=i // 12, head=i % 12, pattern="heterogeneous" if rng.random() < share[i] else "block") for i in range(144) for t in range(20)])
    found = heads.heterogeneous_correlation(named, lives.reshape(12, 12), draws=2000)
    from scipy.stats import pearsonr
    exact = (named.pattern == "heterogeneous").groupby([named.layer, named["head"]]).mean()
    assert found["pearson"] == pytest.approx(pearsonr(lives, exact).statistic)
    assert found["low"] < 0 < found["high"] and found["high"] == pytest.approx(1.96 / np.sqrt(143), rel=.15)


def test_the_labels_that_are_committed():
    records = labels.eye_labels()
    assert len(records) == 520 and len({labels.identity(record) for record in records}) == 520
    texts = [{(r["model"], r["task"], r["row"]) for r in labels.eye_labels(part)} for part in ("develop", "report")]
    assert not texts[0] & texts[1]
    for name in ("again", "later"):
        given = [record for record in records if record[name]]
        assert {record["model"] for record in given} == {"minilm"} and len(given) == 200 and {record[name] for record in given} <= set(CLASSES)
    assert all(8 <= len(record["map"]) <= 128 for record in records)
    with pytest.raises(BadInput, match="part must be one of"): labels.eye_labels("test")


def test_published_shares_add_up(assets):
    shares = heads.published_shares(assets/"prasanna2020"/"attention_pattern_shares.json")
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)
    assert shares.shape == (4 * 8 * 2, 5)


def test_the_committed_wiki_maps_are_what_the_model_gives(assets):
    "Every map of the Wikipedia model can be made again from its row"
    import csv
    import gzip
    from transformers import AutoModel, AutoTokenizer
    from lottery_nb.attention import read_texts
    folder = assets/"models"/"wiki-bert-mini"
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    text = gzip.decompress((assets/"glue_data"/"SST-2"/"dev.tsv.gz").read_bytes()).decode("utf-8-sig")
    rows = list(csv.reader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    for record in [r for r in labels.eye_labels() if r["model"] == "wiki-bert-mini" and r["task"] == "sst2"][:10]:
        one = next(read_texts(model, tokenizer, [rows[record["row"]][0]], record["kind"])).maps[record["layer"]][record["head"]]
        np.testing.assert_allclose(np.sqrt(one / one.max()), np.sqrt(record["map"] / record["map"].max()), atol=.02)


@pytest.mark.parametrize("gates, attention", [("prasanna_2020", "attention_2020"), ("prasanna_2020_micro", "micro_attention"), ("wiki_gates", "wiki_attention"), ("english_prasanna", "english_attention")])
def test_tickets_of_the_attention_grid_are_runs_of_the_gates_grid(gates, attention, monkeypatch):
    monkeypatch.setenv("LOTTERY_NB_MODEL", "some/bert-mini")
    grids = Path(__file__).resolve().parent.parent/"grids"
    pruned = {spec.id: spec.task for spec in read_grid(grids/f"{gates}.yaml") if spec.template == "structured"}
    found = {spec.task: [id for id in pruned if id.startswith(spec.ticket)] for spec in read_grid(grids/f"{attention}.yaml")}
    assert all(len(ids) == 1 and pruned[ids[0]] == task for task, ids in found.items())


@pytest.mark.parametrize("gates, attention", [("prasanna_2020", "attention_2020"), ("prasanna_2020_micro", "micro_attention"), ("english_prasanna", "english_attention")])
def test_attention_is_that_of_super_survivors_read_both_ways(gates, attention):
    "The paper's survivors are those of all seeds; its code cuts W_O by rows and reads pairs as one segment, so every map is made both ways"
    grids = Path(__file__).resolve().parent.parent/"grids"
    over_seeds = {spec.id for spec in read_grid(grids/f"{gates}.yaml") if spec.template == "structured" and spec.super_seeds == 5}
    specs = read_grid(grids/f"{attention}.yaml")
    assert all(sum(id.startswith(spec.ticket) for id in over_seeds) == 1 for spec in specs)
    ways = {(spec.blocks, spec.token_types): {(s.task, s.seed) for s in specs if (s.blocks, s.token_types) == (spec.blocks, spec.token_types)} for spec in specs}
    assert set(ways) == {("columns", True), ("rows", False)} and len(set(map(frozenset, ways.values()))) == 1


def test_the_attention_report_says_what_the_runs_found(tmp_path, warm_python):
    "One made-up run: survivors hold 10 points more than all heads"
    share = {"vertical": .1, "diagonal": .2, "vertical+diagonal": .1, "block": .1}
    shares = {f"{heads} {model} {kind}": share | {"heterogeneous": .5 + .1 * (heads == "surviving")} for heads in ("all", "surviving") for model in ("pre-trained", "fine-tuned") for kind in ("raw", "norm")}
    found = dict(pearson=.7, low=-.5, high=.5, p=.01)
    write_json(tmp_path/"rte-attention-r0-1"/"result.json", dict(schema=1, id="rte-attention-r0-1", template="attention", task="rte", spec=dict(model="micro"), shares=shares, correlations=dict(raw=found, norm=found)))
    notebook = papermill.execute_notebook(Path(__file__).resolve().parent.parent/"nbs"/"reports"/"attention.ipynb", None, dict(runs=str(tmp_path)), kernel_name="python3", progress_bar=False)
    said = json.dumps([output for cell in notebook.cells for output in cell.get("outputs", [])])
    assert "+10.0 (1 of 1 tasks rise)" in said and "2 of 2 correlations lie outside" in said
