"Scores against closed forms, finite differences and a held model."
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from lottery_nb.files import BadInput
from lottery_nb.masks import Mask, hold
from lottery_nb.scores import SCORES, ScoreMap, batch_losses, collect, first_order, fisher, input_norms, magnitude, needs, random, reads_data, snip, wanda
from lottery_nb.select import topk_mask
from lottery_nb.weights import prunable


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def losses(net, count=3):
    for seed in range(count):
        yield net(torch.randn(4, 5, generator=torch.Generator().manual_seed(seed)).double()).square().mean()


def test_magnitude_reads_the_weights_as_they_are_now():
    weights = dict(network().named_parameters())
    scores = magnitude(weights)
    before = scores["0.weight"]
    weights["0.weight"].data.mul_(-2)
    assert torch.equal(scores["0.weight"], 2 * before)
    assert not scores["0.weight"].requires_grad and list(scores) == list(weights) and len(scores) == 4


def test_random_is_seeded_and_leaves_the_global_generator_alone():
    weights = dict(network().named_parameters())
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = random(weights, 0), random(weights, 0), random(weights, 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) and first[name].dtype == torch.float32 for name in weights)
    assert not torch.equal(first["0.weight"], other["0.weight"])


def test_first_order_equals_the_finite_difference():
    net = network()
    weights = dict(net.named_parameters())
    scores, h = first_order(weights, losses(net)), 1e-6
    for name, weight in weights.items():
        for place in range(weight.numel()):
            entry, total = weight.data.view(-1), 0.
            value = entry[place].item()
            for batch in range(3):
                sides = []
                for sign in (1, -1):
                    entry[place] = value + sign * h
                    sides.append(list(losses(net))[batch].item())
                entry[place] = value
                total += abs(value * (sides[0] - sides[1]) / (2 * h))
            assert scores[name].view(-1)[place].item() == pytest.approx(total, abs=1e-8)


def test_first_order_does_not_touch_gradients_or_holds_and_tolerates_unused_weights():
    net, unused = network(), nn.Linear(2, 2)
    mask = Mask({"0.weight": torch.rand(7, 5) < .5})
    with hold(net, mask):
        scores = first_order(dict(net.named_parameters()) | {"unused": unused.weight}, losses(net))
    assert all(weight.grad is None for weight in net.parameters())
    assert scores["unused"].abs().sum() == 0
    assert torch.equal(scores["0.weight"] != 0, mask["0.weight"])


def test_first_order_of_an_expanded_gradient():
    weight = nn.Parameter(torch.tensor([1., -2.]))
    assert first_order({"w": weight}, [weight.sum()])["w"].tolist() == [1., 2.]


def test_no_losses():
    with pytest.raises(BadInput, match="at least one loss"): first_order({"w": nn.Parameter(torch.ones(2))}, iter(()))


def test_table_and_what_each_reads():
    assert SCORES == {"magnitude": magnitude, "random": random, "first-order": first_order, "fisher": fisher, "snip": snip, "wanda": wanda}
    assert [name for name in SCORES if reads_data(name)] == ["first-order", "fisher", "snip", "wanda"]


def accumulated(net, **options):
    "Gradients by backward, one list per weight"
    found = {name: [] for name, _ in net.named_parameters()}
    for loss in losses(net, **options):
        net.zero_grad()
        loss.backward()
        for name, weight in net.named_parameters(): found[name].append(weight.grad.clone())
    net.zero_grad()
    return found


def test_fisher_and_snip_equal_backward():
    net = network()
    weights, found = dict(net.named_parameters()), accumulated(network())
    squares, sums = fisher(weights, losses(net)), snip(weights, losses(net))
    for name, weight in weights.items():
        w = weight.detach()
        torch.testing.assert_close(squares[name], torch.stack([w**2 * g**2 for g in found[name]]).mean(0) / 2)
        torch.testing.assert_close(sums[name], (w * sum(found[name])).abs())


def test_fisher_of_a_quadratic_is_exact_in_the_gauss_newton_sense():
    "Loss (w·x)²/2 with w·x = ±1 has Hessian x x' and gradient ±x: E[g²] is the Hessian's diagonal"
    weight, inputs = nn.Parameter(torch.tensor([2., -1.])), [torch.tensor([1., 1.]), torch.tensor([0., 1.]), torch.tensor([.5, 0.])]
    scores = fisher({"w": weight}, ((weight @ x).square() / 2 for x in inputs))["w"]
    hessian = sum(torch.outer(x, x) for x in inputs).diagonal() / 3
    assert torch.allclose(scores, weight.detach()**2 * hessian / 2)


def test_snip_lets_gains_and_losses_cancel():
    weight = nn.Parameter(torch.tensor([3.]))
    assert snip({"w": weight}, [weight.sum(), -weight.sum()])["w"].item() == 0
    assert first_order({"w": weight}, [weight.sum(), -weight.sum()])["w"].item() == 6


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.lists(st.integers(-3, 3), min_size=4, max_size=4), min_size=1, max_size=4), norms=st.lists(st.sampled_from([0., .5, 1., 2.]), min_size=4, max_size=4),
       sparsity=st.sampled_from([0., .25, .4, .5, .75]))
def test_wanda_keeps_the_best_of_every_row(rows, norms, sparsity):
    "Brute force: in each row, a stable sort of |w|·‖x‖; rows differ by at most one weight, and patterns see the products"
    weight, norm = torch.tensor(rows).float(), torch.tensor(norms)
    scores = wanda({"w": weight}, {"w": norm})
    products = weight.abs() * norm
    for row, score in zip(products.tolist(), scores["w"].tolist()):
        order = sorted(range(4), key=lambda i: (-row[i], i))
        assert score == [(4 - order.index(i)) / 4 for i in range(4)]
    mask = topk_mask(scores, sparsity)
    kept = mask["w"].sum(1)
    assert kept.max() - kept.min() <= 1 and kept.sum() == mask.kept
    for row, score, keep in zip(mask["w"], scores["w"], kept): assert set(row.nonzero().flatten().tolist()) == set(score.argsort(descending=True)[:keep].tolist())
    assert topk_mask(scores, .5, "2:4") == topk_mask({"w": products}, .5, "2:4")


@pytest.fixture(scope="module")
def tiny():
    "A two-layer BERT with a head, double precision, and ten texts of different lengths"
    from transformers import BertConfig, BertForSequenceClassification
    torch.manual_seed(0)
    config = BertConfig(vocab_size=30, num_hidden_layers=2, hidden_size=16, num_attention_heads=2, intermediate_size=32, num_labels=3, hidden_dropout_prob=.5)
    net = BertForSequenceClassification(config).double()
    ids = [torch.randint(1, 30, (length,)) for length in (3, 9, 4, 7, 7, 5, 12, 3, 6, 8)]
    return net, ids


def cut(ids, size):
    "Batches of padded texts"
    for start in range(0, len(ids), size):
        rows = nn.utils.rnn.pad_sequence(ids[start:start + size], batch_first=True)
        yield dict(input_ids=rows, attention_mask=(rows != 0).long(), labels=rows[:, 0] % 3)


@pytest.mark.parametrize("criterion", ["snip", "wanda"])
def test_scores_do_not_depend_on_the_cut_into_batches(tiny, criterion):
    net, ids = tiny
    pool = prunable(net, "encoder+pooler")
    whole, parts = (collect(criterion, net, pool, cut(ids, size)) for size in (10, 3))
    for name in pool: torch.testing.assert_close(whole[name], parts[name], rtol=1e-4, atol=1e-12)


def test_norms_equal_what_flows_in(tiny):
    "Against the attention outputs' inputs, caught one text at a time, without padding"
    net, ids = tiny
    names, caught = list(prunable(net, "encoder+pooler")), {}
    def catch(name): return lambda module, inputs, output: caught.setdefault(name, []).append(inputs[0].flatten(0, -2))
    hooks = [net.get_submodule(name.removesuffix(".weight")).register_forward_hook(catch(name)) for name in names]
    net.eval()
    with torch.no_grad():
        for text in ids: net(input_ids=text[None])
    for hook in hooks: hook.remove()
    norms = input_norms(net, names, cut(ids, 4))
    for name in names: torch.testing.assert_close(norms[name], torch.cat(caught[name]).norm(dim=0).float())
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_collect_judges_without_dropout_and_leaves_the_model_as_it_was(tiny):
    net, ids = tiny
    pool = prunable(net)
    net.train()
    first, again = (collect("snip", net, pool, cut(ids, 5)) for _ in range(2))
    assert net.training and all(torch.equal(first[name], again[name]) for name in pool) and all(weight.grad is None for weight in net.parameters())


def test_losses_of_predicted_words_count_each_word_once():
    from transformers import BertConfig, BertForMaskedLM
    torch.manual_seed(0)
    net = BertForMaskedLM(BertConfig(vocab_size=30, num_hidden_layers=1, hidden_size=8, num_attention_heads=2, intermediate_size=16)).eval()
    ids = torch.randint(1, 30, (6, 7))
    labels = torch.where(torch.rand(6, 7) < .3, ids, -100)
    batches = lambda size: (dict(input_ids=a, labels=b) for a, b in zip(ids.split(size), labels.split(size)))
    assert sum(batch_losses(net, batches(6))).item() == pytest.approx(sum(batch_losses(net, batches(2))).item(), rel=1e-5)


@pytest.mark.parametrize("pool", ["encoder+embeddings", "encoder+biases"])
def test_wanda_refuses_what_has_no_inputs(tiny, pool):
    net, ids = tiny
    with pytest.raises(BadInput, match="choose a pool without embeddings and biases"): collect("wanda", net, prunable(net, pool), cut(ids, 5))


@pytest.fixture
def made_up():
    "Criteria of one's own, put into the table for a test"
    SCORES["broken"] = lambda weights, losses: {name: weight.detach() / 0 * 0 for name, weight in weights.items() if len([*losses]) >= 0}
    SCORES["negative"] = lambda weights: ScoreMap(weights, lambda weight: -weight.abs())
    SCORES["odd"] = lambda weights, colour: weights
    yield
    for name in ("broken", "negative", "odd"): del SCORES[name]


def test_a_criterion_of_ones_own(tiny, made_up):
    net, ids = tiny
    pool = prunable(net)
    assert all(torch.equal(score, -pool[name].detach().abs()) for name, score in collect("negative", net, pool).items())
    pool[next(iter(pool))].data[0, 0] = 0
    with pytest.raises(BadInput, match="criterion broken gave a NaN for bert.encoder"): collect("broken", net, pool, cut(ids, 5))
    with pytest.raises(BadInput, match="parameter of criterion odd must be one of weights, seed, losses, norms; got 'colour'"): needs("odd")
    with pytest.raises(BadInput, match="criterion must be one of"): collect("unknown", net, pool)
    with pytest.raises(BadInput, match="at least one"): collect("fisher", net, pool)


def test_wanda_passes_a_nan_on():
    assert wanda({"w": torch.ones(1, 2)}, {"w": torch.tensor([float("nan"), 1.])})["w"].isnan().any()
