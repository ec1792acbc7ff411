"Selection against a brute-force stable sort, on friendly and hostile scores."
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings, strategies as st

from lottery_nb import select
from lottery_nb.files import BadInput
from lottery_nb.masks import Mask
from lottery_nb.scores import magnitude
from lottery_nb.select import absolute, check_rows, erk_counts, group_levels, keep_groups, kept_count, remaining, shares, topk_mask

TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64]
VALUES = st.one_of(st.sampled_from([0., -0., 1., -1., math.inf, -math.inf, .5]), st.floats(-4, 4, width=16))


def brute(scores, sparsity, within=None): return brute_count(scores, kept_count(sum(score.numel() for score in scores.values()), sparsity), within)


def brute_count(scores, count, within=None):
    "Stable sort of everything, as doubles"
    flat = torch.cat([score.flatten().double() for score in scores.values()])
    alive = torch.ones(len(flat), dtype=torch.bool) if within is None else torch.cat([kept.flatten() for kept in within.values()])
    order = flat.argsort(descending=True, stable=True)
    order = order[alive[order]]
    kept = torch.zeros(len(flat), dtype=torch.bool)
    kept[order[:count]] = True
    parts = kept.split([score.numel() for score in scores.values()])
    return Mask({name: part.view(score.shape) for (name, score), part in zip(scores.items(), parts)})


@st.composite
def score_sets(draw):
    kind = draw(st.sampled_from(TYPES))
    values = st.integers(-3, 3) if kind is torch.int64 else VALUES
    members = draw(st.lists(st.lists(values, min_size=1, max_size=20), min_size=1, max_size=4))
    return {f"m{i}": torch.tensor(member, dtype=kind) for i, member in enumerate(members)}


SPARSITIES = st.one_of(st.sampled_from([0., .1, .3, .5, .7, .9, .99]), st.floats(0, .999))


@pytest.fixture(params=[2**18, 4], ids=["all at once", "tiny samples"], scope="module")
def sample(request):
    "With a sample of four, brackets are mostly wrong: the search must still be exact"
    old, select.SAMPLE = select.SAMPLE, request.param
    yield
    select.SAMPLE = old


@settings(max_examples=150, deadline=None)
@given(scores=score_sets(), sparsity=SPARSITIES)
def test_equals_brute_force(sample, scores, sparsity):
    assert topk_mask(scores, sparsity) == brute(scores, sparsity)


@settings(max_examples=60, deadline=None)
@given(scores=score_sets(), sparsity=SPARSITIES)
def test_each_matrix_equals_brute_force(sample, scores, sparsity):
    mask = topk_mask(scores, sparsity, scope="matrix")
    for name, score in scores.items(): assert Mask({name: mask[name]}) == brute({name: score}, sparsity)


@settings(max_examples=100, deadline=None)
@given(scores=score_sets(), other=st.integers(0, 9), first=SPARSITIES, second=SPARSITIES)
def test_inside_a_mask_equals_brute_force_and_is_nested(sample, scores, other, first, second):
    first, second = sorted([first, second])
    draw = torch.Generator().manual_seed(other)
    outer = topk_mask({name: torch.rand(score.shape, generator=draw) for name, score in scores.items()}, first)
    inner = topk_mask(scores, second, within=outer)
    assert inner == brute(scores, second, outer) and inner.nested_in(outer)


@settings(max_examples=60, deadline=None)
@given(scores=score_sets(), first=SPARSITIES, second=SPARSITIES)
def test_nested_as_sparsity_grows(scores, first, second):
    first, second = sorted([first, second])
    assert topk_mask(scores, second).nested_in(topk_mask(scores, first))
    assert topk_mask(scores, second, within=topk_mask(scores, first)) == topk_mask(scores, second)


def hostile(kind: str, n: int = 700_000) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    uniform = torch.rand(n, generator=draw)
    return {
        "equal": torch.ones(n), "two values": (uniform < .3).float(), "few values": (uniform * 5).floor(),
        "mostly zero": torch.where(uniform < .8, torch.zeros(n), uniform), "atom at the border": torch.where(uniform < .699, torch.full((n,), .2), uniform),
        "sorted": torch.arange(n).float(), "reversed": torch.arange(n).flip(0).float(), "heavy tail": (uniform - .5).pow(-9),
        "infinite": torch.where(uniform < .4, torch.full((n,), math.inf), -torch.full((n,), math.inf)), "tiny": uniform * 1e-42, "half": uniform.half(),
    }[kind]


@pytest.mark.parametrize("kind", ["equal", "two values", "few values", "mostly zero", "atom at the border", "sorted", "reversed", "heavy tail", "infinite", "tiny", "half"])
@pytest.mark.parametrize("sparsity", [.3, .7, .9999])
def test_hostile_scores_beyond_the_sample(kind, sparsity):
    scores = dict(zip("abc", hostile(kind).split([1, 199_999, 500_000])))
    assert topk_mask(scores, sparsity) == brute(scores, sparsity)


@pytest.mark.parametrize("levels", [(.5, .9), (.9, .99)])
def test_inside_a_mask_beyond_the_sample(levels):
    scores = {"a": hostile("heavy tail"), "b": hostile("few values")}
    outer = topk_mask({name: score.flip(0) for name, score in scores.items()}, levels[0])
    assert topk_mask(scores, levels[1], within=outer) == brute(scores, levels[1], outer)


def test_mixed_types_are_compared_exactly():
    scores = {"a": torch.tensor([.1, 1 / 3], dtype=torch.float64), "b": torch.tensor([.1, 1 / 3], dtype=torch.bfloat16), "c": torch.tensor([.1, 1 / 3])}
    for sparsity in (1 / 6, .5, 5 / 6): assert topk_mask(scores, sparsity) == brute(scores, sparsity)


def test_same_choice_as_torch_prune_where_nothing_ties():
    from torch.nn.utils import prune
    torch.manual_seed(0)
    layers = {f"l{i}": torch.nn.Linear(40, 30) for i in range(3)}
    mask = topk_mask(magnitude({name: layer.weight for name, layer in layers.items()}), .7)
    prune.global_unstructured([(layer, "weight") for layer in layers.values()], prune.L1Unstructured, amount=.7)
    assert all(torch.equal(layer.weight_mask.bool(), mask[name]) for name, layer in layers.items())


@given(entries=st.integers(0, 10**9), percent=st.integers(0, 99))
def test_count_is_exact_in_decimals(entries, percent):
    assert kept_count(entries, percent / 100) == round(Fraction(100 - percent, 100) * entries)


@given(step=st.integers(1, 99), until=st.integers(0, 99))
def test_schedules_rise_and_end_at_the_target(step, until):
    for schedule in (absolute, remaining):
        levels = list(schedule(step / 100, until / 100))
        assert levels[-1] == until / 100 and levels == sorted(set(levels))


SHAPES = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple), min_size=1, max_size=6).map(lambda shapes: {f"m{i}": shape for i, shape in enumerate(shapes)})


def slow_erk(shapes, keep):
    "D'Hondt, one weight at a time: whoever is not full and has the largest sides per weight gets the next"
    counts = dict.fromkeys(shapes, 0)
    for _ in range(keep):
        counts[max((n for n, shape in shapes.items() if counts[n] < math.prod(shape)), key=lambda n: Fraction(sum(shapes[n]), counts[n] + 1))] += 1
    return counts


@settings(max_examples=150, deadline=None)
@given(shapes=SHAPES, share=st.floats(0, 1))
def test_erk_equals_brute_force_and_never_takes_back(shapes, share):
    total = sum(math.prod(shape) for shape in shapes.values())
    keep = round(share * total)
    counts = erk_counts(shapes, keep)
    assert counts == slow_erk(shapes, keep) and list(counts) == list(shapes) and sum(counts.values()) == keep
    if keep < total: assert all(counts[name] <= more for name, more in erk_counts(shapes, keep + 1).items())


def test_erk_is_the_papers_density():
    "Matrices of BERT-base: d = ε (n_in + n_out) / (n_in n_out) with one ε, to within a weight"
    shapes = {"query": (768, 768), "intermediate": (3072, 768), "embeddings": (30522, 768)}
    counts = erk_counts(shapes, kept_count(sum(map(math.prod, shapes.values())), .9))
    epsilon = [count / sum(shapes[name]) for name, count in counts.items()]
    assert max(epsilon) - min(epsilon) < 1e-3
    assert counts["query"] / 768**2 > 1.9 * counts["embeddings"] / (30522 * 768)


@settings(max_examples=60, deadline=None)
@given(shapes=SHAPES, first=SPARSITIES, second=SPARSITIES, seed=st.integers(0, 9))
def test_erk_masks_are_exact_and_nested(shapes, first, second, seed):
    first, second = sorted([first, second])
    draw = torch.Generator().manual_seed(seed)
    outer, inner = ({name: torch.rand(shape, generator=draw) for name, shape in shapes.items()} for _ in range(2))
    before = topk_mask(outer, first, "erk")
    after = topk_mask(inner, second, "erk", within=before)
    assert after.nested_in(before) and after.kept == kept_count(after.total, second)
    for names, count in shares(after.shapes, second, "erk"): assert Mask({names[0]: after[names[0]]}) == brute_count({names[0]: inner[names[0]]}, count, Mask({names[0]: before[names[0]]}))


@st.composite
def patterns(draw):
    "A pattern, scores of rows that it divides (with many ties), and an enclosing count per group"
    size = draw(st.integers(2, 8))
    keep = draw(st.integers(1, size - 1))
    shapes = draw(st.lists(st.lists(st.integers(1, 3), min_size=0, max_size=2), min_size=1, max_size=3))
    shapes = [(*rows, size * draw(st.integers(1, 3))) for rows in shapes]
    kind = draw(st.sampled_from(TYPES))
    values = st.integers(-2, 2) if kind is torch.int64 else VALUES
    return keep, size, {f"m{i}": torch.tensor(draw(st.lists(values, min_size=math.prod(s), max_size=math.prod(s))), dtype=kind).view(s) for i, s in enumerate(shapes)}


@settings(max_examples=150, deadline=None)
@given(drawn=patterns(), outer=st.integers(0, 8), seed=st.integers(0, 9))
def test_patterns_equal_brute_force_inside_every_group_and_nest(drawn, outer, seed):
    keep, size, scores = drawn
    sparsity, level = 1 - keep / size, 1 - max(keep, min(outer, size)) / size
    draw = torch.Generator().manual_seed(seed)
    around = topk_mask({name: torch.rand(score.shape, generator=draw) for name, score in scores.items()}, level, f"{keep}:{size}")
    for within in (None, around):
        mask = topk_mask(scores, sparsity, f"{keep}:{size}", within=within)
        if within is not None: assert mask.nested_in(within)
        for name, score in scores.items():
            parts = ((score, mask[name]) if within is None else (score, mask[name], within[name]))
            for row in zip(*(part.reshape(-1, size) for part in parts)):
                alive = Mask({"g": row[2]}) if within is not None else None
                assert Mask({"g": row[1]}) == brute_count({"g": row[0]}, keep, alive)


@given(pattern=st.tuples(st.integers(1, 15), st.integers(2, 16)).filter(lambda p: p[0] < p[1]), step=st.integers(1, 60))
def test_levels_of_a_pattern_are_the_rounds_that_change_it(pattern, step):
    keep, size = pattern
    levels = group_levels(absolute(step / 100, 1 - keep / size), f"{keep}:{size}")
    counts = [kept_count(size, level) for level in levels]
    assert counts[-1] == keep and counts == sorted(set(counts), reverse=True) and counts[0] < size


def test_a_chain_inside_a_pattern():
    "Scores that change from round to round: each round keeps its count in each group, inside the one before"
    mask, draw = None, torch.Generator().manual_seed(0)
    for level in group_levels(absolute(.1, .75), "4:16"):
        inner = topk_mask({"w": torch.rand(6, 64, generator=draw)}, level, "4:16", within=mask)
        assert (inner["w"].view(-1, 16).sum(1) == kept_count(16, level)).all() and (mask is None or inner.nested_in(mask))
        mask = inner
    assert mask.sparsity == .75


def test_a_group_that_has_too_few_left():
    with pytest.raises(BadInput, match="2 of every 4 entries cannot stay"): keep_groups(torch.ones(1, 4), 2, 4, torch.tensor([[True, False, False, False]]))
    check_rows({"w": (3, 5)}, "global")


def test_bad_input():
    ones = {"w": torch.ones(4)}
    for sparsity in (-.1, 1., 2., math.nan):
        with pytest.raises(BadInput, match="sparsity must be in"): topk_mask(ones, sparsity)
    with pytest.raises(BadInput, match="scores of w have a NaN"): topk_mask({"w": torch.tensor([1., math.nan])}, .5)
    with pytest.raises(BadInput, match="scores are empty"): topk_mask({}, .5)
    with pytest.raises(BadInput, match="scope must be one of"): topk_mask(ones, .5, scope="local")
    with pytest.raises(BadInput, match="scope 4:2 must keep at least 1"): topk_mask(ones, .5, scope="4:2")
    with pytest.raises(BadInput, match="those of w have 4 weights"): topk_mask(ones, .5, scope="1:3")
    with pytest.raises(BadInput, match="sparsity can be at most 0.5, got 0.75"): topk_mask(ones, .75, scope="2:4")
    with pytest.raises(BadInput, match="within must have"): topk_mask(ones, .5, within=Mask({"v": torch.ones(4, dtype=torch.bool)}))
