"Smaller models: what a unit costs, the best exchange, and folders that load three ways, against independent twins"
import itertools
import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (AutoModelForSequenceClassification, BertTokenizerFast, DistilBertConfig, DistilBertForSequenceClassification, ElectraConfig,
                          ElectraForSequenceClassification, MPNetConfig, MPNetForSequenceClassification, RobertaConfig, RobertaForSequenceClassification,
                          pipeline)

from lottery_nb.baseline import materials
from lottery_nb.cli import main
from lottery_nb.files import BadInput, read_json, write_json
from lottery_nb.gates import at_full_size, flops, gate, gates_of, load_smaller, mlp_widths, open_gates, sensitivity, sizes_left, smaller
from lottery_nb.models import load_model
from lottery_nb.pareto import Point, write_pareto
from lottery_nb.running import run
from lottery_nb.shrinking import Found, Wish, able, gates_of_run, random_like, search_score, search_structure, shrink
from lottery_nb.sizes import Costs, Structure, additive, best_structure, closing_loss, counted_costs, felt, kept_best, knapsack, rearranged, whole
from lottery_nb.small import ONNX_FILES, OnnxModel, exported, in_onnx, modelling, normal_equations, plain_width, reweighted, solved, tapped, write_small
from lottery_nb.spec import AttentionSpec, MagnitudeSpec, RunSpec, StructuredSpec, TicketSpec
from lottery_nb.tasks import get_task
from lottery_nb.tickets import Ticket
from lottery_nb.training import encoded, predict

FILES = {"torch": "model.safetensors"} | ONNX_FILES
SIZE = dict(vocab_size=14, num_labels=2)
BERT_SIZE = SIZE | dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=12, max_position_embeddings=40)
KINDS = {
    "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**BERT_SIZE)),
    "electra": lambda: ElectraForSequenceClassification(ElectraConfig(**BERT_SIZE, embedding_size=16)),
    "distilbert": lambda: DistilBertForSequenceClassification(DistilBertConfig(**SIZE, dim=16, n_layers=2, n_heads=4, hidden_dim=12, max_position_embeddings=40)),
    "mpnet": lambda: MPNetForSequenceClassification(MPNetConfig(**BERT_SIZE)),
}
IDS = torch.randint(5, 14, (6, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model(tiny_model): return load_model(str(tiny_model), get_task("sst2"), 0)


@pytest.fixture(scope="module")
def batch(): return dict(input_ids=IDS, attention_mask=(torch.arange(9) < torch.tensor([9, 4, 9, 7, 9, 2])[:, None]).long(), labels=torch.arange(6) % 2)


def uneven(net, seed=0):
    "A structure with an emptied attention, an emptied MLP, and sizes of its own elsewhere"
    full, rng = whole(net), np.random.default_rng(seed)
    heads, neurons = (rng.random(part.shape) < .5 for part in (full.heads, full.neurons))
    heads[:, 0] = neurons[:, 0] = True
    heads[-1], neurons[0] = False, False
    return Structure(heads, neurons)


def test_gradients_are_those_of_each_example_alone(model, batch):
    together = felt(model, [batch])
    for at in range(6):
        for part, alone in zip(together, felt(model, [{name: values[at:at + 1] for name, values in batch.items()}])): torch.testing.assert_close(part[at], alone[0], rtol=1e-4, atol=1e-7)
    heads = sensitivity(model, batch, open_gates(model))[:, :together.heads[0].numel()]
    torch.testing.assert_close(together.heads.flatten(1), heads, rtol=1e-4, atol=1e-7)


def test_a_neurons_gradient_is_a_finite_difference(model, batch):
    net, one = model.double(), {name: values[:1] for name, values in batch.items()}
    try:
        found, full, step = felt(net, [one]).neurons[0], whole(net), 1e-4
        for layer, neuron in ((0, 3), (1, 7)):
            sides = []
            for sign in (1, -1):
                neurons = torch.ones(full.neurons.shape, dtype=torch.float64)
                neurons[layer, neuron] += sign * step
                with torch.no_grad(), gate(net, *full.gates, neurons): sides.append(float(net(**one).loss))
            assert float(found[layer, neuron]) == pytest.approx((sides[0] - sides[1]) / (2*step), rel=1e-3, abs=1e-9)
    finally: net.float()


def test_importance_needs_labels_and_batches(model, batch):
    with pytest.raises(BadInput, match="needs labels in every batch, got only input_ids"): felt(model, [{"input_ids": IDS}])
    with pytest.raises(BadInput, match="needs at least one batch"): felt(model, [])


groups = st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=4), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(groups, st.integers(1, 20))
def test_the_exchange_is_the_best_of_all(groups, budget):
    losses, costs = ([np.array([float(pair[at]) for pair in group]) for group in groups] for at in (0, 1))
    total = lambda parts, chosen: sum(part[i] for part, i in zip(parts, chosen))
    possible = [chosen for chosen in itertools.product(*(range(len(group)) for group in groups)) if total(costs, chosen) <= budget]
    if not possible:
        with pytest.raises(BadInput, match="too small"): knapsack(losses, costs, float(budget))
        return
    found = knapsack(losses, costs, float(budget), steps=budget * 100)
    assert total(costs, found) <= budget and total(losses, found) == min(total(losses, chosen) for chosen in possible)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 9))
def test_rearranging_only_lowers_the_loss_and_stops_where_no_swap_helps(seed, size):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(3, size)); block = rows.T @ rows
    kept = rng.permutation(size) < rng.integers(0, size + 1)
    found = rearranged(block, kept)
    assert found.sum() == kept.sum() and closing_loss(block, found) <= closing_loss(block, kept) + 1e-9
    for out, inside in itertools.product(found.nonzero()[0], (~found).nonzero()[0]):
        swapped = found.copy(); swapped[out], swapped[inside] = False, True
        assert closing_loss(block, swapped) >= closing_loss(block, found) - 1e-9


def test_the_best_of_each_layer_are_kept():
    scores = np.array([[3., 1., 3., 2.], [0., 0., 0., 0.]])
    assert kept_best(scores, [2, 1]).tolist() == [[True, False, True, False], [True, False, False, False]]


def test_counted_costs_are_the_flops_of_the_cut_model(model):
    for seed in range(4):
        structure = uneven(model, seed)
        costs = counted_costs(model, 16)
        exact = Costs(0., costs.heads, list(range(33)), [costs.neurons[-1] / 32 * width for width in range(33)])
        assert exact.total(structure) == flops(smaller(model, structure.gates, neurons=structure.neurons), 16)


def test_times_become_costs_that_never_fall():
    costs = additive(1., [.4, .3, .8, .7, 1.], [0, 8, 16], [.6, .5, 1.], 2)
    assert costs.heads == pytest.approx([0, 0, .2, .2, .3]) and costs.neurons == pytest.approx([0, 0, .2]) and costs.rest == 0


def test_a_cut_model_is_the_gated_one(model, batch):
    structure = uneven(model)
    with torch.no_grad(), gate(model, *structure.gates, structure.neurons): gated = model(**batch).logits
    with torch.no_grad(): torch.testing.assert_close(smaller(model, structure.gates, neurons=structure.neurons)(**batch).logits, gated)


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_is_cut_as_gated(kind):
    torch.manual_seed(0)
    net = KINDS[kind]().eval()
    structure = uneven(net)
    with torch.no_grad(), gate(net, *structure.gates, structure.neurons): gated = net(IDS).logits
    with torch.no_grad(): torch.testing.assert_close(smaller(net, structure.gates, neurons=structure.neurons)(IDS).logits, gated)


def test_gates_of_neurons_have_the_models_shape(model):
    full = whole(model)
    with pytest.raises(BadInput, match=r"gates must be \(2, 32\) for neurons in this model, got \(2, 31\)"): gate(model, *full.gates, full.neurons[:, 1:])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 3))
def test_normal_equations_are_those_of_what_units_add(seed, units, size):
    draw = torch.Generator().manual_seed(seed)
    x, w, y = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in ((5, units*size), (3, units*size), (5, 3)))
    adds = torch.stack([x[:, u*size:(u + 1)*size] @ w[:, u*size:(u + 1)*size].T for u in range(units)])
    gram, right = normal_equations(x, w, y, size)
    torch.testing.assert_close(gram, torch.einsum("uth,vth->uv", adds, adds))
    torch.testing.assert_close(right, torch.einsum("uth,th->u", adds, y))


def test_numbers_that_run_away_stay_at_one():
    assert solved(torch.eye(2).double(), torch.tensor([1., 1e3]).double()).tolist() == [1, 1]


def test_reweighting_brings_the_first_sub_layer_closer(model, batch):
    "Least squares around 1: the error of the layer it is solved for falls, and the full model is left as it was"
    full, before = whole(model), {name: value.clone() for name, value in model.state_dict().items()}
    structure = Structure(full.heads, np.array([np.arange(32) < 9, np.ones(32, bool)]))
    fixed, families, errors = reweighted(model, structure, [batch]), ("intermediate", "output"), []
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    wanted = tapped(model, batch, 0, families)[2]
    for net in (model, fixed):
        with gate(net, *structure.gates, structure.neurons): errors.append(float((tapped(net, batch, 0, families)[2] - wanted).pow(2).sum()))
    assert errors[1] < errors[0]


@pytest.mark.parametrize("kind", [*KINDS, "bert"])
def test_a_cut_model_at_full_size_answers_as_it_did(kind, model):
    torch.manual_seed(0)
    net = model if kind == "bert" else KINDS[kind]().eval()
    structure = uneven(net)
    cut = smaller(net, structure.gates, neurons=structure.neurons).eval()
    full = at_full_size(cut)
    with torch.no_grad(): torch.testing.assert_close(full(IDS).logits, cut(IDS).logits, rtol=1e-5, atol=1e-6)
    assert open_gates(full) == open_gates(net) and sizes_left(cut)[1].sum(1).tolist() == structure.neurons.sum(1).tolist()


def written(net, tokenizer, folder, **options):
    return write_small(net, BertTokenizerFast.from_pretrained(tokenizer), folder, {}, lambda about: "# small", **options)


def test_a_folder_loads_three_ways(model, batch, tiny_model, tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install lottery-nb[deploy])")
    structure = uneven(model)
    with torch.no_grad(), gate(model, *structure.gates, structure.neurons): gated = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    folder = written(smaller(model, structure.gates, neurons=structure.neurons), tiny_model, tmp_path/"small")
    assert read_json(folder/"shrink.json")["onnx"] == "written" and (folder/"model.int8.onnx").stat().st_size > 0
    inputs = {name: values for name, values in batch.items() if name != "labels"}
    with torch.no_grad():
        for net in (AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True).eval(), load_smaller(folder)):
            torch.testing.assert_close(net(**inputs).logits, gated, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(OnnxModel(folder/"model.onnx")(**inputs).logits, gated, rtol=1e-4, atol=1e-5)
    other = torch.randint(5, 14, (3, 5))
    with torch.no_grad(): torch.testing.assert_close(OnnxModel(folder/"model.onnx")(other).logits, load_smaller(folder)(other).logits, rtol=1e-4, atol=1e-5)
    answer = pipeline("text-classification", model=str(folder), trust_remote_code=True)("the film was good")
    assert 0 <= answer[0]["score"] <= 1


@pytest.mark.parametrize("kind", ["roberta", "electra", "distilbert"])
def test_other_architectures_load_without_this_library(kind, tiny_model, tmp_path):
    torch.manual_seed(0)
    net = KINDS[kind]().eval()
    structure = uneven(net)
    cut = smaller(net, structure.gates, neurons=structure.neurons).eval()
    folder = written(cut, tiny_model, tmp_path/"small", onnx=False)
    assert "lottery_nb" not in (folder/"modeling_small.py").read_text()
    with torch.no_grad(): torch.testing.assert_close(AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True).eval()(IDS).logits, cut(IDS).logits)


def test_an_architecture_with_shared_positions_is_refused():
    with pytest.raises(BadInput, match="a mpnet model cannot be written"): modelling(KINDS["mpnet"]())


def test_a_plain_model_is_written_plainly(model, tiny_model, tmp_path):
    full = whole(model)
    even = Structure(full.heads, np.arange(32) < np.full((2, 1), 20))
    cut = smaller(model, even.gates, neurons=even.neurons).eval()
    assert plain_width(cut) == 20 and plain_width(smaller(model, uneven(model).gates, neurons=uneven(model).neurons)) is None
    folder = written(cut, tiny_model, tmp_path/"plain", onnx=False)
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad(): torch.testing.assert_close(plain(IDS).logits, cut(IDS).logits)
    assert not (folder/"modeling_small.py").exists()


def test_an_exporter_that_fails_leaves_the_folder_and_its_reason(model, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.onnx.export", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no such operator")))
    folder = written(model, tiny_model, tmp_path/"small")
    assert read_json(folder/"shrink.json")["onnx"] == "not written: no such operator" and not list(folder.glob("*.onnx"))
    monkeypatch.setattr("lottery_nb.extras.find_spec", lambda name: None)
    other = written(model, tiny_model, tmp_path/"other")
    assert "pip install 'lottery-nb[deploy]'" in read_json(other/"shrink.json")["onnx"]


def test_the_budget_is_corrected_until_the_measured_share_fits(model, batch):
    "A table that is wrong by a third: what is measured decides"
    gradients, costs = felt(model, [batch]), counted_costs(model, 9)
    full = costs.total(whole(model))
    found = search_structure(gradients, costs, whole(model), .5, lambda structure: 1.33 * costs.total(structure) / full)
    assert found.share == pytest.approx(.5, rel=.1)
    with pytest.raises(BadInput, match="the model cannot be 1e\\+03 times as small or fast: without any head or neuron it is 10 times"):
        search_structure(gradients, costs._replace(rest=full / 9), whole(model), .001, lambda structure: 1.)


def test_a_score_is_held_by_the_smallest_seen():
    search = lambda share: Found(share, share)
    assert search_score(search, lambda share: share, .7).share == pytest.approx(.703125)
    with pytest.raises(BadInput, match="no smaller model holds a score of 2"): search_score(search, lambda share: share, 2.)


def test_random_removal_has_the_same_sizes(model):
    structure = uneven(model)
    other = random_like(structure, whole(model), 1)
    assert other.heads.sum(1).tolist() == structure.heads.sum(1).tolist() and other.neurons.sum(1).tolist() == structure.neurons.sum(1).tolist()
    assert not np.array_equal(other.neurons, structure.neurons)


def test_best_structure_stays_within_its_budget(model, batch):
    gradients, costs = felt(model, [batch]), counted_costs(model, 9)
    full = costs.total(whole(model))
    for share in (.2, .5, .8): assert costs.total(best_structure(gradients, costs, share * full)) <= share * full


@pytest.fixture
def spec(tiny_model, tiny_data): return RunSpec(task=str(tiny_data), model=str(tiny_model), batch_size=8, max_steps=6, max_length=16)


def test_the_whole_road_and_back_again(spec, tmp_path, monkeypatch):
    "A second call makes the same folder from the stages of the first, and its folder is a model that can be asked"
    wish = Wish(speedup=1.5, target="flops", retrain=4)
    one = shrink(spec, wish, tmp_path/"one", tmp_path/"runs", onnx=False, pareto=False)
    monkeypatch.setattr("lottery_nb.training.Finetuner.training_step", lambda *_, **__: pytest.fail("trained again"))
    shrink(spec, wish, tmp_path/"two", tmp_path/"runs", onnx=False, pareto=False)
    assert (tmp_path/"one"/"model.safetensors").read_bytes() == (tmp_path/"two"/"model.safetensors").read_bytes()
    assert one["share"] <= .66671 and one["parameters"] < one["parameters_full"] and one["retrain_steps"] == 4
    card = (tmp_path/"one"/"README.md").read_text()
    assert f"{one['score_retrained']:.4f}" in card and "--max-steps 6" in card and "--speedup 1.5" in card


def test_a_budget_in_parameters(spec, tmp_path):
    about = shrink(spec, Wish(parameters=1500, retrain=0), tmp_path/"small", tmp_path/"runs", onnx=False, pareto=False)
    sizes = 16 * 16 * 4 // 2 * sum(about["heads"]) + 2 * 16 * sum(about["widths"])
    assert 0 < sizes <= 1500 and about["score_retrained"] is None


def test_the_files_are_judged_and_drawn(spec, tmp_path):
    "What card, table and picture say of the ONNX files is what they give when they are asked again"
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install lottery-nb[deploy])")
    about, folder = shrink(spec, Wish(speedup=1.5, target="flops", retrain=2), tmp_path/"small", tmp_path/"runs"), tmp_path/"small"
    task, data, tokenizer = materials(spec)
    features = encoded(spec, task, data, tokenizer, task.evaluation[0])
    logits = {name: predict(net, task, features, tokenizer) for name, net in {"torch": load_smaller(folder), **exported(folder)}.items()}
    for name, one in about["files"].items():
        assert one["difference"] == pytest.approx(np.abs(logits[name] - logits["torch"]).max(), abs=1e-6)
        assert one["score"] == pytest.approx((logits[name].argmax(1) == features["labels"]).mean()) and one["bytes"] == (folder/FILES[name]).stat().st_size
    assert about["files"]["onnx"]["difference"] < min(1e-4, about["files"]["int8"]["difference"])
    table, card = pd.read_csv(folder/"pareto.csv"), (folder/"README.md").read_text()
    assert {"full model", "full model, int8", "search", "random removal", "chosen", "chosen, int8", "chosen, not retrained"} <= set(table.kind)
    assert table[table.kind == "chosen"].score.item() == pytest.approx(about["score_retrained"])
    assert "![score against milliseconds](pareto.png)" in card and "| model.int8.onnx |" in card
    assert (folder/"pareto.png").read_bytes()[:4] == b"\x89PNG" and "<svg" in (folder/"pareto.svg").read_text()


def test_a_target_of_onnx_is_timed_by_onnxruntime(spec, tmp_path, monkeypatch):
    "Whatever is compared in the search is a session; the times are made up here"
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install lottery-nb[deploy])")
    timed = []
    def latency(models, *_, **__):
        timed.extend(models.values())
        return {name: 1. if name in ("full", "whole") else .7 for name in models}
    for module in ("sizes", "shrinking"): monkeypatch.setattr(f"lottery_nb.{module}.latency", latency)
    monkeypatch.setenv("LOTTERY_NB_CACHE", str(tmp_path/"cache"))
    about = shrink(spec, Wish(speedup=1/.7, target="onnx", retrain=0), tmp_path/"small", tmp_path/"runs", onnx=False, pareto=False)
    assert about["share"] == .7 and about["speedup_batch_32"] == round(1/.7, 3) and "by onnxruntime" in (tmp_path/"small"/"README.md").read_text()
    assert len(timed) > 20 and {type(net).__name__ for net in timed[:-1]} == {"OnnxModel"}


def test_without_the_extras_one_sentence_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("lottery_nb.extras.find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"pip install 'lottery-nb\[deploy\]'"): Wish(speedup=2, target="onnx")
    points = [Point("full model", .9, 2., 1.), Point("search", .8, 1., 2.), Point("search", .7, 1.5, 1.3)]
    assert "pip install 'lottery-nb[report]'" in write_pareto(points, tmp_path, "accuracy")
    assert pd.read_csv(tmp_path/"pareto.csv").unbeaten.tolist() == [True, False, True] and not (tmp_path/"pareto.png").exists()


def test_an_export_that_fails_is_one_sentence_where_it_is_timed(model, monkeypatch):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install lottery-nb[deploy])")
    monkeypatch.setattr("torch.onnx.export", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no such operator")))
    with pytest.raises(BadInput, match="target onnx needs an export of the model, which failed: no such operator"): in_onnx(model)


@pytest.fixture(scope="module")
def folders(model, tiny_model, tmp_path_factory):
    "Two small models with heads for the task: one plain, one whose layers differ"
    place, full = tmp_path_factory.mktemp("folders"), whole(model)
    parts = {"plain": Structure(full.heads, np.arange(32) < np.full((2, 1), 20)), "uneven": uneven(model)}
    return {name: written(smaller(model, part.gates, neurons=part.neurons), tiny_model, place/name, onnx=False) for name, part in parts.items()}


@pytest.mark.parametrize("kind", ["plain", "uneven"])
def test_a_small_folder_is_a_model_again(kind, folders, tiny_data, tmp_path):
    "As the weights that a ticket run starts from, and as what is made smaller still"
    folder, given = folders[kind], dict(task=str(tiny_data), batch_size=8, max_steps=3, max_length=16)
    net = load_model(str(folder), get_task("sst2"), 0, own=True)
    with torch.no_grad(): torch.testing.assert_close(net(IDS).logits, load_smaller(folder)(IDS).logits if kind == "uneven" else AutoModelForSequenceClassification.from_pretrained(folder).eval()(IDS).logits)
    result = run(TicketSpec(model=str(folder), method="omp", sparsity=.5, **given), tmp_path/"runs")
    assert result["sparsity"] == pytest.approx(.5, abs=.01)
    about = shrink(RunSpec(model=str(folder), **given), Wish(speedup=1.3, target="flops", retrain=2), tmp_path/"smaller", tmp_path/"runs", onnx=False, pareto=False)
    assert about["share"] <= 1/1.3 + 1e-4 and about["parameters_full"] == sum(p.numel() for p in net.parameters())
    assert all(new <= old for new, old in zip(about["widths"], mlp_widths(net))) and all(new <= old for new, old in zip(about["heads"], gates_of(net).heads.sum(1)))
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path/"smaller", trust_remote_code=True).eval()
    with torch.no_grad(): torch.testing.assert_close(again(IDS).logits, load_smaller(tmp_path/"smaller")(IDS).logits)


@pytest.mark.parametrize("kind", [StructuredSpec, MagnitudeSpec, AttentionSpec])
def test_runs_that_count_heads_refuse_a_small_folder_before_it_trains(kind, folders, tmp_path, monkeypatch):
    monkeypatch.setattr("lottery_nb.training.Finetuner.training_step", lambda *_, **__: pytest.fail("trained"))
    (tmp_path/"long.csv").write_text("text,label\n" + "".join(f"{'the film was good ' * 2}{word},{word}\n" for word in ("good", "bad") * 10))
    own = {"cnn_maps": 25, "cnn_epochs": 1} if kind is AttentionSpec else {}
    with pytest.raises(BadInput, match="gates need a whole model, but heads or the MLP of layer 0 have been removed: it is a small model already"):
        run(kind(model=str(folders["uneven"]), task=str(tmp_path/"long.csv"), max_steps=3, max_length=16, **own), tmp_path/"runs")


def test_a_model_that_does_the_task_is_not_trained_again(spec, tiny_data, tmp_path, monkeypatch):
    "A head that says no more than a guess is"
    done = shrink(replace(spec, epochs=8., max_steps=None, learning_rate=2e-3), Wish(speedup=1.2, target="flops", retrain=60), tmp_path/"one", tmp_path/"runs", onnx=False, pareto=False)
    assert done["score_retrained"] > done["majority"]
    monkeypatch.setattr("lottery_nb.training.Finetuner.training_step", lambda *_, **__: pytest.fail("trained again"))
    again = replace(spec, model=str(tmp_path/"one"))
    about = shrink(again, Wish(speedup=1.2, target="flops", retrain=0), tmp_path/"two", tmp_path/"runs", onnx=False, pareto=False)
    assert about["score_full"] == done["score_retrained"]
    monkeypatch.setattr("lottery_nb.shrinking.judge", lambda spec, net: {about["metric"]: 0.})
    with pytest.raises(BaseException, match="trained again"): able(again, tmp_path/"runs")


@pytest.fixture(scope="module")
def kept_run(tiny_model, tiny_data, tmp_path_factory):
    "A finished ticket run that kept its model"
    root = tmp_path_factory.mktemp("kept")
    spec = TicketSpec(task=str(tiny_data), model=str(tiny_model), method="omp", sparsity=.5, keep_model=True, batch_size=8, max_steps=6, max_length=16)
    return root/run(spec, root)["id"]


def test_a_ticket_is_written_plainly_with_its_zeros(kept_run, tmp_path, capsys):
    "The card says by measurement that zeros save no time"
    assert main(["shrink", "--run", str(kept_run), "--out", str(tmp_path/"zeros"), "--no-onnx"]) == 0
    assert "Zeros alone do not make it faster here" in capsys.readouterr().out
    plain, about, mask = AutoModelForSequenceClassification.from_pretrained(tmp_path/"zeros").eval(), read_json(tmp_path/"zeros"/"shrink.json"), Ticket.load(kept_run/"ticket").mask
    assert all(not plain.get_parameter(name).detach()[~kept].any() for name, kept in mask.items())
    assert about["zeros"] == mask.total - mask.kept and about["share"] > 0 and not (tmp_path/"zeros"/"modeling_small.py").exists()
    assert about["score"] == read_json(kept_run/"result.json")["score"]


def test_a_ticket_without_its_model_or_with_another_is_refused(kept_run, tiny_model, tiny_data, tmp_path, capsys):
    out, broken = tmp_path/"zeros", tmp_path/"broken"
    shutil.copytree(kept_run, broken)
    weights = load_file(broken/"retrained"/"model"/"model.safetensors")
    name = next(iter(Ticket.load(kept_run/"ticket").mask))
    save_file(weights | {name: torch.ones_like(weights[name])}, broken/"retrained"/"model"/"model.safetensors", metadata={"format": "pt"})
    assert main(["shrink", "--run", str(broken), "--out", str(out)]) == 2 and f"{name} has values where the mask has none" in capsys.readouterr().err
    shutil.rmtree(broken/"retrained"/"model")
    assert main(["shrink", "--run", str(broken), "--out", str(out)]) == 2 and "has not kept its model: run it again with --keep-model true" in capsys.readouterr().err
    assert main(["shrink", "--run", str(kept_run), "--gates", "good", "--out", str(out)]) == 2 and "has no good gates" in capsys.readouterr().err
    assert not out.exists()
    out.mkdir()
    assert main(["shrink", "--run", str(kept_run), "--out", str(out)]) == 2 and "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("words, said", [
    (["--speedup", "2", "--parameters", "9"], "give one of speedup, latency_ms, parameters, keep_score and gates, got speedup and parameters"),
    ([], "give one of speedup, latency_ms, parameters, keep_score and gates, got none"),
    (["--speedup", "0.5"], "speedup must be more than 1, got 0.5"),
    (["--keep-score", "1.5"], "keep_score must be more than 0 and at most 1, got 1.5"),
    (["--speedup", "2", "--target", "tpu"], "target must be one of cpu, onnx, flops; got 'tpu'"),
    (["--speedup", "2", "--retrain", "-1"], "retrain must be at least 0, got -1"),
    (["--latency-ms", "5", "--target", "flops"], "latency_ms is measured: target must be cpu or onnx, got 'flops'"),
    (["--gates", "good"], "run and gates belong together"),
    (["--gates", "fine"], "gates must be one of good, random, bad"),
    (["--parameters", "999999999", "--max-steps", "1"], "the full model is as small and fast as that already"),
    (["--speedup", "2", "--sparsity", "0.5"], "field must be one of"),
    (["--speedup", "1e6", "--target", "flops"], "the model cannot be 1e+06 times as small or fast: no head and no neuron would be left; with one it is "),
    (["--parameters", "1"], "times as small or fast: no head and no neuron would be left; with one it is "),
    (["--latency-ms", "1e-6"], "times as small or fast: "),
    (["--speedup", "2", "--task", "mlm"], "task mlm has no labels of sentences: shrink takes tasks of classes or numbers"),
    (["--run", "no/such/run", "--gates", "good"], "no/such/run"),
])
def test_bad_input_is_one_sentence_and_leaves_nothing(words, said, tiny_model, tiny_data, tmp_path, capsys):
    code = main(["shrink", "--model", str(tiny_model), "--task", str(tiny_data), "--out", str(tmp_path/"small"), "--runs", str(tmp_path/"runs"), "--max-length", "16", *words])
    error = capsys.readouterr().err
    assert code == 2 and said in error and error.count("\n") == 1 and not list(tmp_path.glob("small*"))


def test_a_folder_that_exists_is_refused(tiny_model, tiny_data, tmp_path, capsys):
    (tmp_path/"small").mkdir()
    assert main(["shrink", "--model", str(tiny_model), "--task", str(tiny_data), "--out", str(tmp_path/"small"), "--speedup", "2"]) == 2
    assert "exists already; choose a new folder" in capsys.readouterr().err and not list((tmp_path/"small").iterdir())


def test_a_damaged_folder_is_refused(model, tiny_model, tmp_path):
    folder = written(smaller(model, uneven(model).gates, neurons=uneven(model).neurons), tiny_model, tmp_path/"small", onnx=False)
    weights = (folder/"model.safetensors").read_bytes()
    (folder/"model.safetensors").write_bytes(weights[:-7])
    with pytest.raises(BadInput): load_smaller(folder)
    (folder/"model.safetensors").write_bytes(weights)
    (folder/"config.json").write_text(json.dumps(json.loads((folder/"config.json").read_text()) | {"num_attention_heads": 1}))
    with pytest.raises(BadInput): load_smaller(folder)


@pytest.mark.parametrize("damage", ["weights cut short", "no weights", "gates of another model", "gates that are none", "no tokenizer", "config cut short"])
def test_a_damaged_folder_is_one_sentence_as_a_model(damage, folders, tiny_data, tmp_path, capsys):
    folder = shutil.copytree(folders["uneven"], tmp_path/"damaged")
    config = read_json(folder/"config.json")
    rewrite = lambda **values: (folder/"config.json").write_text(json.dumps(config | values))
    {"weights cut short": lambda: (folder/"model.safetensors").write_bytes((folder/"model.safetensors").read_bytes()[:-7]),
     "no weights": lambda: (folder/"model.safetensors").unlink(),
     "gates of another model": lambda: rewrite(gates=config["gates"] | {"head_mask": [[1, 1], [1, 1]]}),
     "gates that are none": lambda: rewrite(gates="all"),
     "no tokenizer": lambda: [path.unlink() for path in folder.glob("tokenizer*")],
     "config cut short": lambda: (folder/"config.json").write_text('{"model_type": "bert",')}[damage]()
    code = main(["shrink", "--model", str(folder), "--task", str(tiny_data), "--out", str(tmp_path/"small"), "--runs", str(tmp_path/"runs"), "--max-length", "16",
                 "--max-steps", "2", "--speedup", "1.2", "--target", "flops"])
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and str(folder) in error and not (tmp_path/"small").exists()


def test_gates_of_another_model_are_refused(model, tmp_path):
    write_json(tmp_path/"result.json", {"gates": {"good": {"head_mask": [[1] * 8] * 2, "mlp_mask": [1, 1]}}})
    with pytest.raises(BadInput, match=f"are for 2 layers of 8 heads, this model has 2 of {model.config.num_attention_heads}"): gates_of_run(tmp_path, "good", model)


def test_an_exporter_that_fails_is_in_the_card(spec, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install lottery-nb[deploy])")
    monkeypatch.setattr("torch.onnx.export", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no such operator")))
    about = shrink(spec, Wish(speedup=1.5, target="flops", retrain=0), tmp_path/"small", tmp_path/"runs", pareto=False)
    assert about["onnx"] == "not written: no such operator" and list(about["files"]) == ["torch"]
    assert "ONNX: not written: no such operator." in (tmp_path/"small"/"README.md").read_text()


def test_the_gates_of_a_structured_run_become_a_folder(tiny_model, tiny_data, tmp_path):
    "The folder is the model that the run has pruned, before it is retrained"
    found = StructuredSpec(task=str(tiny_data), model=str(tiny_model), batch_size=8, max_steps=6, max_length=16)
    folder = tmp_path/"runs"/run(found, tmp_path/"runs")["id"]
    assert main(["shrink", "--run", str(folder), "--gates", "random", "--out", str(tmp_path/"small"), "--runs", str(tmp_path/"runs"), "--retrain", "0", "--no-onnx", "--no-pareto"]) == 0
    about, gates = read_json(tmp_path/"small"/"shrink.json"), read_json(folder/"result.json")["gates"]["random"]
    assert about["heads"] == np.array(gates["head_mask"]).sum(1).tolist() and about["widths"] == [32 * kept for kept in gates["mlp_mask"]]
    assert load_smaller(tmp_path/"small").config.gates["head_mask"] == gates["head_mask"]
