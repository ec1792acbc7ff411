"Scores against closed forms, finite differences and a held model."
import pytest
import torch
from torch import nn

from lottery_nb.files import BadInput
from lottery_nb.masks import Mask, hold
from lottery_nb.scores import SCORES, first_order, magnitude, random


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


def test_table():
    assert SCORES == dict(magnitude=magnitude, random=random, first_order=first_order)
