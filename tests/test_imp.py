"""OMP, IMP and its variants: what each round starts from, what is shared, what comes out."""
from dataclasses import replace

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import lottery_nb.baseline as baseline_module
import lottery_nb.imp as imp_module
import lottery_nb.methods as methods_module
from lottery_nb.baseline import WEIGHTS, dense, target_spec, theta0
from lottery_nb.files import BadInput, read_json
from lottery_nb.imp import Chain, chain_of, chain_pieces, levels, rewind_point
from lottery_nb.methods import find_ticket, retrain, starting_point
from lottery_nb.scores import magnitude
from lottery_nb.select import topk_mask
from lottery_nb.spec import TicketSpec
from lottery_nb.tickets import Ticket
from lottery_nb.weights import prunable


@pytest.fixture
def make(tiny_model, tiny_data):
    "A spec on the tiny model and data"
    base = dict(task=str(tiny_data), model=str(tiny_model), method="imp", sparsity=.3, max_steps=6, batch_size=8, max_length=16, learning_rate=1e-2)
    return lambda **values: TicketSpec(**(base | values))


@pytest.fixture
def rounds(monkeypatch):
    "Records what every training started from, and its settings"
    seen, original = [], baseline_module.train_into

    def recorded(folder, model, spec, judge=True, **settings):
        seen.append(dict(start={n: p.detach().clone() for n, p in model.named_parameters()}, judge=judge, **settings))
        original(folder, model, spec, judge, **settings)
        seen[-1]["end"] = {n: p.detach().clone() for n, p in model.named_parameters()}

    for module in (baseline_module, imp_module, methods_module): monkeypatch.setattr(module, "train_into", recorded)
    return seen


def equal(one, other, names=None): return all(torch.equal(one[n], other[n]) for n in names or one)


def trunk(weights): return [n for n in weights if n.startswith("bert.")]


def head(weights): return [n for n in weights if not n.startswith("bert.")]


def test_every_round_rewinds_to_theta0_bit_for_bit(make, rounds, tmp_path):
    spec = make()
    find_ticket(spec, tmp_path)
    origin = dict(theta0(target_spec(spec)).named_parameters())
    assert len(rounds) == 3
    for number, r in enumerate(rounds):
        assert equal(r["start"], origin), number
        assert number == 0 or not equal(r["end"], origin)


def test_without_rewinding_each_round_goes_on_from_the_last(make, rounds, tmp_path):
    find_ticket(make(rewind=None), tmp_path)
    for before, after in zip(rounds, rounds[1:]): assert equal(before["end"], after["start"])


def test_a_kept_head_is_the_last_rounds_head_on_theta0(make, rounds, tmp_path):
    spec = make(rewind_head=False)
    find_ticket(spec, tmp_path)
    origin = dict(theta0(target_spec(spec)).named_parameters())
    for before, after in zip(rounds, rounds[1:]):
        assert equal(after["start"], origin, trunk(origin))
        assert equal(after["start"], before["end"], head(origin)) and not equal(after["start"], origin, head(origin))


def line(r): return tuple(r.get(name) for name in ("length", "lr_offset", "lr_total"))


@pytest.mark.parametrize("round_steps, rest", [(None, (3, 3, 6)), (4, (2, 2, 4)), (10, (5, 5, 10))])
def test_late_rewinding_restores_theta_i_of_the_whole_training(make, rounds, tmp_path, round_steps, rest):
    "The same θ_i at any length of the rounds; each round trains what is left of its own line"
    spec = make(rewind=.5, round_steps=round_steps)
    find_ticket(spec, tmp_path)
    theta_i = load_file(rewind_point(target_spec(spec), .5, tmp_path)/WEIGHTS)
    late = [r for r in rounds if r.get("mask") is not None]
    assert len(late) == 2 and [line(r) for r in late] == [rest, rest]
    for r in late: assert equal({n: r["start"][n] for n in trunk(r["start"])}, theta_i, trunk(theta_i))
    # θ3 is what three steps of the same schedule give
    short = theta0(target_spec(spec))
    (tmp_path/"short").mkdir()
    baseline_module.train_into(tmp_path/"short", short, target_spec(spec), judge=False, length=3, lr_total=6)
    assert equal(dict(short.named_parameters()), theta_i, trunk(theta_i))


@pytest.mark.parametrize("round_steps", [None, 4])
def test_retraining_from_theta_i_takes_what_is_left_of_the_learning_rate(make, rounds, tmp_path, round_steps):
    spec = make(rewind=.5, round_steps=round_steps)
    ticket = find_ticket(spec, tmp_path)
    begin = len(rounds)
    retrain(spec, ticket, tmp_path/"run", tmp_path)
    assert [line(r) for r in rounds[begin:] if r.get("mask") is not None] == [(3, 3, 6)]


def test_a_training_too_short_to_rewind_into_is_refused(make, tmp_path):
    with pytest.raises(BadInput, match="rewind 0.5 needs a training of at least 2 steps, got 1"): find_ticket(make(rewind=.5, max_steps=1), tmp_path)


def test_the_first_round_is_the_full_models_own_training(make, rounds, tmp_path):
    spec = make()
    find_ticket(spec, tmp_path)
    dense(spec, tmp_path)
    assert sum("mask" not in r for r in rounds) == 1


def test_deeper_costs_only_the_new_rounds_and_shallower_nothing(make, rounds, tmp_path):
    find_ticket(make(sparsity=.3), tmp_path)
    count = len(rounds)
    find_ticket(make(sparsity=.2), tmp_path)
    assert len(rounds) == count
    find_ticket(make(sparsity=.5), tmp_path)
    assert len(rounds) == count + 2


@pytest.mark.parametrize("changes, total", [({}, 60), ({"schedule": "remaining"}, 60), ({"step": .4, "sparsity": .8}, 18), ({"warmup": .5}, 60)])
def test_the_horizon_of_the_whole_run_starts_each_round_anew(make, rounds, tmp_path, changes, total):
    "D2: as released, a new scheduler after each pruning, as long as the whole chain: every round falls from the peak by one share"
    find_ticket(make(horizon="run", **changes), tmp_path)
    assert len(rounds) > 1 and {line(r) for r in rounds} == {(6, 0, total)}
    stages = [pd.read_parquet(path).learning_rate for path in tmp_path.glob("stages/imp-*/history.parquet")]
    assert len(stages) == len(rounds) and all(rates.equals(stages[0]) for rates in stages)
    rates = stages[0].to_numpy()
    assert rates[-1] == rates.min() > 0 if "warmup" not in changes else rates.argmax() == 3


def test_theta0_is_pruned_once_before_any_training(make, rounds, tmp_path):
    "Liu et al. 2022, Appendix B.2: the first mask is that of the pre-trained weights, and each later one costs a round"
    spec = make(prune_first=True)
    find_ticket(spec, tmp_path)
    chain, origin = Chain(spec, tmp_path), theta0(target_spec(spec))
    first = topk_mask(magnitude(prunable(origin, spec.pool)), .1, spec.scope)
    assert Ticket.load(chain.level(1)/"ticket").mask == first
    assert len(rounds) == 2 and rounds[0]["mask"] == first and equal(rounds[0]["start"], dict(origin.named_parameters()))
    assert [piece.steps for piece in chain_pieces(spec)] == [0, 6, 6]


def test_pruning_first_goes_with_every_way_to_rewind(make, rounds, tmp_path):
    for number, changes in enumerate(({"rewind": None}, {"rewind_head": False}, {"rewind": .5})):
        rounds.clear()
        spec = make(prune_first=True, **changes)
        find_ticket(spec, tmp_path/str(number))
        trained = [r for r in rounds if r.get("mask") is not None]
        assert len(trained) == 2
        assert equal(trained[0]["start"], dict(theta0(target_spec(spec)).named_parameters()))
    assert line(trained[1]) == (3, 3, 6)


def test_the_mlm_chain_of_the_paper_takes_its_steps():
    "Liu et al. 2022, Table 2: 22,340 steps to 90 %"
    spec = TicketSpec(task="sst2", model="micro", method="imp", source="mlm", sparsity=.9, round_steps=2792, prune_first=True)
    assert sum(piece.steps for piece in chain_pieces(spec)) == pytest.approx(22_340, abs=8)


def test_each_round_sees_another_data_order(make, rounds, tmp_path):
    find_ticket(make(round_steps=3), tmp_path)
    assert [r["order"] for r in rounds] == [0, 1, 2]


def test_masks_follow_the_definition(make, rounds, tmp_path):
    "The smallest tenth of |θ_T| among the living goes, brute force"
    spec = make()
    find_ticket(spec, tmp_path)
    chain = Chain(spec, tmp_path)
    for number, r in enumerate(rounds, 1):
        mask = Ticket.load(chain.level(number)/"ticket").mask
        alive = r.get("mask")
        flat = torch.cat([(r["end"][n].abs().masked_fill(~alive[n], -1) if alive is not None else r["end"][n].abs()).flatten() for n in mask])
        kept = torch.zeros(len(flat), dtype=torch.bool)
        kept[flat.argsort(descending=True, stable=True)[:mask.kept]] = True
        assert torch.equal(kept, torch.cat([m.flatten() for m in mask.values()]))
        assert mask.kept == round((1 - .1*number)*mask.total)


def test_remaining_schedule_prunes_a_share_of_what_lives(make, tmp_path):
    spec = make(schedule="remaining", sparsity=.25)
    assert levels(spec) == pytest.approx([.1, .19, .25])


@pytest.mark.parametrize("scope, sparsity, counts", [("2:4", .5, [3, 2]), ("1:2", .5, [1]), ("4:16", .75, [14, 13, 11, 10, 8, 6, 5, 4])])
def test_a_pattern_is_exact_in_every_group_of_every_round(make, rounds, scope, sparsity, counts, tmp_path):
    "Only rounds that take a weight from each group, each mask inside the one before"
    spec = make(scope=scope, sparsity=sparsity)
    ticket, chain, size = find_ticket(spec, tmp_path), Chain(spec, tmp_path), int(scope.split(":")[1])
    masks = [Ticket.load(chain.level(number)/"ticket").mask for number in range(1, len(chain.levels) + 1)]
    assert [{int(n) for kept in mask.values() for n in kept.reshape(-1, size).sum(1)} for mask in masks] == [{count} for count in counts]
    assert all(later.nested_in(mask) for mask, later in zip(masks, masks[1:])) and ticket.mask == masks[-1] and len(rounds) == len(counts)


def test_erk_rounds_nest_and_keep_the_total(make, tmp_path):
    spec = make(scope="erk", sparsity=.4)
    ticket, chain = find_ticket(spec, tmp_path), Chain(spec, tmp_path)
    before = Ticket.load(chain.level(3)/"ticket").mask
    assert ticket.mask.nested_in(before) and ticket.mask.kept == round(.6 * ticket.mask.total)


def test_a_pattern_that_does_not_fit_is_refused_before_training(make, rounds, tmp_path):
    with pytest.raises(BadInput, match="scope 1:5 needs rows that 5 divides, but those of"): find_ticket(make(scope="1:5", sparsity=.8), tmp_path)
    assert not rounds


def test_standard_pruning_goes_on_from_the_trained_weights(make, rounds, tmp_path):
    spec = make(method="standard")
    ticket = find_ticket(spec, tmp_path)
    last = rounds[-1]["end"]
    assert equal(dict(starting_point(spec, ticket, tmp_path)[0].named_parameters()), last)


def test_a_mask_found_on_mlm_is_retrained_on_the_task(make, tiny_data, tmp_path):
    text = tmp_path/"text.txt"
    text.write_text("the film was good the meal was fine\n"*80)
    spec = make(source="mlm", text=str(text), round_steps=2, sparsity=.2)
    ticket = find_ticket(spec, tmp_path)
    assert ticket.provenance["source"] == "mlm"
    assert (retrain(spec, ticket, tmp_path/"run", tmp_path)/"scores.json").exists()


@pytest.fixture
def both(make, tmp_path):
    "A spec whose mask is found on MLM and the task at once"
    text = tmp_path/"text.txt"
    text.write_text("the film was good the meal was fine\n"*80)
    task = make().task
    return make(source=f"mlm+{task}", text=str(text), round_steps=4, sparsity=.2)


def test_a_mask_found_on_two_tasks_rewinds_and_differs_from_either(both, tmp_path):
    ticket = find_ticket(both, tmp_path)
    assert ticket.provenance["source"] == both.source and ticket.mask.sparsity == pytest.approx(.2, abs=1e-3)
    singles = [find_ticket(replace(both, source=source), tmp_path).mask for source in ("", "mlm")]
    assert all(ticket.mask != single for single in singles)
    assert (retrain(both, ticket, tmp_path/"run", tmp_path)/"scores.json").exists()
    level = find_ticket(replace(both, sparsity=.1), tmp_path).mask
    assert ticket.mask.nested_in(level)


def test_a_joint_chain_killed_between_training_and_pruning_trains_no_more(both, tmp_path, monkeypatch):
    whole = find_ticket(both, tmp_path/"whole")
    calls, original = [], imp_module.finetune_jointly

    def counted(*args, **options):
        calls.append(1)
        return original(*args, **options)

    monkeypatch.setattr(imp_module, "finetune_jointly", counted)
    prune = imp_module.topk_mask

    def killed(*args, **options): raise KeyboardInterrupt

    monkeypatch.setattr(imp_module, "topk_mask", killed)
    with pytest.raises(KeyboardInterrupt): find_ticket(both, tmp_path/"torn")
    monkeypatch.setattr(imp_module, "topk_mask", prune)
    assert find_ticket(both, tmp_path/"torn").mask == whole.mask
    assert len(calls) == 2


def test_fewer_source_examples_are_another_chain(make, tmp_path):
    spec = make(source_train=5, sparsity=.1)
    few, all_of_them = Chain(spec, tmp_path), Chain(replace(spec, source_train=None), tmp_path)
    assert few.source.max_train == 5 and few.key(1) != all_of_them.key(1) and target_spec(spec).max_train is None


def everything(weights): return torch.cat([w.detach().flatten() for w in weights.values()]).sort().values


@pytest.mark.parametrize("start", ["reinit", "shuffle-layers", "shuffle-within"])
def test_controls_start_elsewhere_with_the_same_mask(make, start, tmp_path):
    spec = make(method="omp", start=start)
    ticket = find_ticket(spec, tmp_path)
    model, origin = starting_point(spec, ticket, tmp_path)[0], theta0(target_spec(spec))
    ours, theirs = prunable(model), prunable(origin)
    assert any(not torch.equal(ours[n], theirs[n]) for n in ours)
    if start.startswith("shuffle"): assert torch.equal(everything(ours), everything(theirs))


def test_equal_specs_give_equal_bytes_in_different_places(make, tmp_path):
    spec = make(sparsity=.2)
    folders = []
    for place in ("one", "two"):
        ticket = find_ticket(spec, tmp_path/place)
        folders += [retrain(spec, ticket, tmp_path/place/"run", tmp_path/place), ticket.save(tmp_path/place/"ticket")]
    for one, two in zip(folders[:2], folders[2:]):
        assert {p.name: p.read_bytes() for p in one.iterdir()} == {p.name: p.read_bytes() for p in two.iterdir()}


def test_another_theta0_is_refused_before_training(make, tmp_path):
    spec = make(method="omp")
    ticket = find_ticket(spec, tmp_path)
    foreign = Ticket(ticket.mask, ticket.provenance | {"fingerprint": "0"*64})
    with pytest.raises(BadInput, match="was found for other weights"): retrain(spec, foreign, tmp_path/"run", tmp_path)
    assert not (tmp_path/"run"/"retrained").exists()


# early-bird tickets


def test_an_early_round_ends_where_a_twin_says(make, tmp_path):
    "Brute force: the masks of every look, from trainings that stop there"
    spec = make(method="early-bird", round_steps=40, early_distance=.03, early_window=3, sparsity=.1)
    level = chain_of(spec, tmp_path).level(1)
    taken, looks = read_json(level/"steps.json")["steps"], []
    for step in range(2, 41, 2):
        model = theta0(target_spec(spec))
        (tmp_path/f"twin-{step}").mkdir()
        baseline_module.train_into(tmp_path/f"twin-{step}", model, target_spec(spec), judge=False, length=step, lr_total=40)
        looks.append(topk_mask(magnitude(prunable(model)), .1))
        apart = [float(sum((a[n] ^ b[n]).sum() for n in a))/a.total for a, b in zip(looks[-4:-1], looks[-3:])]
        if len(looks) > 3 and max(apart) < .03: break
    assert taken == step and looks[-1] == Ticket.load(level/"ticket").mask


def test_an_early_round_that_is_killed_ends_at_the_same_step(make, tmp_path, monkeypatch):
    spec = make(method="early-bird", round_steps=40, early_distance=.03, early_window=3, sparsity=.1)
    whole = chain_of(spec, tmp_path/"whole").level(1)
    monkeypatch.setattr("lottery_nb.training.CHECKPOINT_SECONDS", 0)
    original, calls = imp_module.StandingStill.on_step_end, []

    def mortal(self, args, state, control, **rest):
        calls.append(state.global_step)
        if len(calls) == 7: raise KeyboardInterrupt
        original(self, args, state, control, **rest)

    monkeypatch.setattr(imp_module.StandingStill, "on_step_end", mortal)
    with pytest.raises(KeyboardInterrupt): chain_of(spec, tmp_path/"torn").level(1)
    torn = chain_of(spec, tmp_path/"torn").level(1)
    assert {p.name: p.read_bytes() for p in whole.rglob("*") if p.is_file()} == {p.name: p.read_bytes() for p in torn.rglob("*") if p.is_file()}


def test_rounds_that_never_stand_still_are_those_of_imp(make, tmp_path):
    early, usual = (make(method=method, round_steps=6, sparsity=.2) for method in ("early-bird", "imp"))
    assert find_ticket(replace(early, early_distance=1e-9), tmp_path).mask == find_ticket(usual, tmp_path).mask
