"""Tickets: round trips, damage, other models, others' formats."""
import hashlib
import json
import random
import warnings

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils import prune
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, BertForSequenceClassification, BertModel, RobertaConfig, RobertaForSequenceClassification

from lottery_nb.cli import main
from lottery_nb.files import BadInput, read_json, write_json
from lottery_nb.masks import Mask, hold
from lottery_nb.models import base_of
from lottery_nb.scores import magnitude
from lottery_nb.select import kept_count, topk_mask
from lottery_nb.spec import POOLS
from lottery_nb.tickets import Ticket, combine, export_prune, from_prune_state, provenance_of, read_any_mask, read_mask, ticket_name, write_mask
from lottery_nb.weights import base_name, fingerprint, prunable

TINY = dict(num_hidden_layers=2, hidden_size=16, num_attention_heads=2, intermediate_size=32, vocab_size=40, max_position_embeddings=16)


def bert(seed=0, kind=BertForSequenceClassification, **changes):
    torch.manual_seed(seed)
    return kind(BertConfig(**(TINY | changes))).eval()


def omp(model, sparsity=.5, pool="encoder"):
    mask = topk_mask(magnitude(prunable(model, pool)), sparsity)
    return Ticket(mask, provenance_of(model, mask, method="omp", pool=pool))


masks = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 9), st.integers(0, 2**32 - 1)), min_size=1, max_size=4).map(
    lambda parts: Mask({f"encoder.layer.{i}.w": torch.from_numpy(np.random.default_rng(seed).random((rows, columns)) < .5) for i, (rows, columns, seed) in enumerate(parts)}))


@settings(max_examples=40)
@given(mask=masks)
def test_masks_survive_the_disk_bit_for_bit(mask, tmp_path_factory):
    folder = tmp_path_factory.mktemp("t")
    assert read_mask(write_mask(folder/"m.safetensors", mask)) == mask
    assert write_mask(folder/"again.safetensors", read_mask(folder/"m.safetensors")).read_bytes() == (folder/"m.safetensors").read_bytes()


def test_equal_tickets_are_equal_bytes(tmp_path):
    one, two = omp(bert()).save(tmp_path/"one"), omp(bert()).save(tmp_path/"two")
    assert {p.name: p.read_bytes() for p in one.iterdir()} == {p.name: p.read_bytes() for p in two.iterdir()}


@pytest.mark.parametrize("position", [0, 7, 60, -1])
def test_a_flipped_bit_anywhere_is_seen(tmp_path, position):
    folder = omp(bert()).save(tmp_path/"t")
    data = bytearray((folder/"mask.safetensors").read_bytes())
    data[position] ^= 4
    (folder/"mask.safetensors").write_bytes(data)
    with pytest.raises(BadInput, match="truncated or changed"): Ticket.load(folder)


@pytest.mark.parametrize("keep", [0, 5, 100])
def test_truncation_is_seen_even_with_a_forged_checksum(tmp_path, keep):
    from lottery_nb.files import file_digest
    folder = omp(bert()).save(tmp_path/"t")
    (folder/"mask.safetensors").write_bytes((folder/"mask.safetensors").read_bytes()[:keep])
    write_json(folder/"ticket.json", read_json(folder/"ticket.json") | {"mask_sha256": file_digest(folder/"mask.safetensors")})
    with pytest.raises(BadInput, match="is not a mask file"): Ticket.load(folder)


def test_an_unfinished_save_is_no_ticket(tmp_path):
    folder = omp(bert()).save(tmp_path/"t")
    (folder/"ticket.json").unlink()
    with pytest.raises(BadInput, match="ticket.json does not exist"): Ticket.load(folder)


def test_the_head_class_does_not_matter():
    "θ0 is what lies under the heads: a ticket found on one head class fits the others"
    trunk = bert(kind=BertModel)
    classifier, lm = bert(seed=1), bert(seed=2, kind=BertForMaskedLM)
    classifier.bert.load_state_dict(trunk.state_dict())
    lm.bert.load_state_dict(trunk.state_dict(), strict=False)
    ticket = omp(classifier)
    ticket.apply(lm).release()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ticket.apply(trunk).release()
    assert int(sum((p == 0).sum() for p in prunable(trunk, "encoder").values())) >= ticket.mask.total - ticket.mask.kept


def test_a_missing_pooler_is_reported_and_tolerated():
    classifier, lm = bert(), bert(seed=3, kind=BertForMaskedLM)
    lm.bert.load_state_dict(classifier.bert.state_dict(), strict=False)
    with pytest.warns(UserWarning, match="pooler"): omp(classifier, pool="encoder+pooler").apply(lm).release()


def test_another_theta0_needs_an_explicit_override():
    ticket = omp(bert(0))
    with pytest.raises(BadInput, match="any_weights=True"): ticket.apply(bert(1))
    held = ticket.apply(bert(1), any_weights=True)
    held.release()


@pytest.mark.parametrize("other", [dict(num_hidden_layers=1), dict(hidden_size=32), dict(intermediate_size=64)])
def test_another_size_is_another_architecture(other):
    with pytest.raises(BadInput, match="another architecture"): omp(bert()).apply(bert(**other), any_weights=True)


def test_another_family_is_another_architecture():
    with pytest.raises(BadInput, match="for a bert model, this one is a roberta"):
        omp(bert()).apply(RobertaForSequenceClassification(RobertaConfig(**TINY)), any_weights=True)


def test_masks_of_torch_prune_are_read(tmp_path):
    model, twin = bert(), bert()
    modules = dict(twin.named_modules())
    chosen = [(modules[name.removesuffix(".weight")], "weight") for name in prunable(twin, "encoder")]
    prune.global_unstructured(chosen, prune.L1Unstructured, amount=.5)
    torch.save(twin.state_dict(), tmp_path/"pruned.pt")
    ours = topk_mask(magnitude(prunable(model, "encoder")), .5)
    assert from_prune_state(tmp_path/"pruned.pt") == ours


def test_a_pickle_is_never_executed(tmp_path):
    import pickle

    class Bomb:
        def __reduce__(self): return (open, (str(tmp_path/"boom"), "w"))

    (tmp_path/"mask.pt").write_bytes(pickle.dumps({"a_mask": Bomb()}))
    with pytest.raises(BadInput, match="pickled modules are refused"): from_prune_state(tmp_path/"mask.pt")
    assert not (tmp_path/"boom").exists()


def test_a_ticket_fits_its_own_checkpoint_in_every_stored_type(tmp_path):
    "Plain `from_pretrained` follows the stored type since transformers 5"
    bert(kind=BertForPreTraining).bfloat16().save_pretrained(tmp_path)
    found_on, plain = (BertForSequenceClassification.from_pretrained(tmp_path, **kind) for kind in (dict(dtype=torch.float32), {}))
    assert plain.dtype == torch.bfloat16
    omp(found_on).apply(plain).release()
    with pytest.raises(BadInput, match="found for other weights"): omp(found_on).apply(bert(1).bfloat16())


def test_a_ticket_goes_on_a_wrapped_model():
    model = bert()
    ticket, wrapped = omp(model), torch.nn.DataParallel(torch.compile(model))
    assert omp(wrapped).provenance == ticket.provenance and omp(wrapped).mask == ticket.mask
    with ticket.apply(wrapped): assert all((model.get_parameter(name)[~kept] == 0).all() for name, kept in ticket.mask.items())
    with pytest.raises(BadInput, match="found for other weights"): ticket.apply(torch.nn.DataParallel(bert(1)))


def old_format(folder):
    "As version 0.1 wrote it: no checksum of the provenance"
    about = read_json(folder/"ticket.json")
    del about["provenance_sha256"]
    write_json(folder/"ticket.json", about)
    return folder


def test_old_tickets_still_load(tmp_path):
    ticket = omp(bert())
    again = Ticket.load(old_format(ticket.save(tmp_path/"t")))
    assert again.mask == ticket.mask and again.provenance == ticket.provenance
    again.apply(bert()).release()


@pytest.mark.parametrize("change, message", [
    (lambda about: about["provenance"].update(seed=7), "its provenance differs from its checksum"),
    (lambda about: about["provenance"].pop("method"), "its provenance differs from its checksum"),
    (lambda about: about.update(provenance=[]), "its provenance is missing, unknown or of another kind"),
    (lambda about: about.pop("mask_sha256"), "its mask_sha256 is missing"), (lambda about: about.update(mask_sha256=5), "its mask_sha256 is"),
    (lambda about: about.update(provenance_sha256=None), "its provenance_sha256 is"), (lambda about: about.update(more=1), "its more is missing, unknown"),
    (lambda about: about.update(format=True), "its format is"), (lambda about: about.update(format=2), "is not a ticket of format 1")])
def test_an_edited_ticket_is_refused(tmp_path, change, message):
    folder = omp(bert()).save(tmp_path/"t")
    about = read_json(folder/"ticket.json")
    change(about)
    write_json(folder/"ticket.json", about)
    with pytest.raises(BadInput, match=message): Ticket.load(folder)


@pytest.mark.parametrize("name", ["kept", "total", "sparsity"])
def test_counts_are_compared_with_the_mask(tmp_path, name):
    ticket = omp(bert())
    with pytest.raises(BadInput, match=f"says {name} 1, its mask has"): Ticket.load(Ticket(ticket.mask, ticket.provenance | {name: 1}).save(tmp_path/"t"))
    Ticket.load(Ticket(ticket.mask).save(tmp_path/"bare"))


def damage(data, draw):
    "One of seven ways in which a file goes bad"
    data, at = bytearray(data), draw.randrange(len(data)) if data else 0
    way = draw.choice(["bit", "byte", "cut", "lose", "insert", "swap", "zero"])
    if way == "bit": data[at] ^= 1 << draw.randrange(8)
    if way == "byte": data[at] = draw.randrange(256)
    if way == "cut": del data[at:]
    if way == "lose": del data[at:at + draw.randrange(1, 40)]
    if way == "insert": data[at:at] = draw.randbytes(draw.randrange(1, 9))
    if way == "swap": data[at:at + 8] = data[at:at + 8][::-1]
    if way == "zero": data[at:at + draw.randrange(1, 64)] = bytes(draw.randrange(1, 64))
    return bytes(data)


HOSTILE = [None, True, 0, -1, 1e308, "", "x", [], {}, [[1]], {"shapes": 1}, "9" * 5000, 2 ** 70]


def edit(value, draw):
    "Another value somewhere in JSON"
    if not isinstance(value, dict) or not value or draw.random() < .15: return draw.choice(HOSTILE)
    name = draw.choice(list(value))
    if (way := draw.random()) < .2: return {other: part for other, part in value.items() if other != name}
    if way < .3: return value | {draw.choice(["x", "provenance_sha256", "format"]): draw.choice(HOSTILE)}
    return value | {name: edit(value[name], draw)}


def test_no_damaged_ticket_is_accepted(tmp_path):
    "900 tickets gone bad: BadInput, or the same mask and provenance (white space, a lost checksum)"
    model, draw = bert(num_hidden_layers=1, hidden_size=4, intermediate_size=4), random.Random(0)
    ticket, files = omp(model), {}
    for path in ticket.save(tmp_path/"t").iterdir(): files[path.name] = path.read_bytes()
    folder, refused = tmp_path/"bad", 0
    folder.mkdir()
    for case in range(900):
        bad = dict(files)
        for name in [("mask.safetensors",), ("ticket.json",), ("mask.safetensors", "ticket.json")][case % 3]: bad[name] = damage(bad[name], draw)
        if case % 6 == 4: bad["ticket.json"] = json.dumps(edit(json.loads(files["ticket.json"]), draw)).encode()
        if case % 9 == 0:   # a damaged mask under a checksum that fits
            about = json.loads(files["ticket.json"]) | {"mask_sha256": hashlib.sha256(bad["mask.safetensors"]).hexdigest()}
            bad["ticket.json"] = json.dumps(about).encode()
        for name, data in bad.items(): (folder/name).write_bytes(data)
        try: found = Ticket.load(folder)
        except BadInput as error: refused += len(str(error)) < 1000; continue
        assert found.provenance == ticket.provenance and (found.mask == ticket.mask or case % 9 == 0), case
    assert refused > 800


def test_no_damaged_mask_file_is_more_than_refused(tmp_path):
    "500 files of each kind that `read_any_mask` reads: BadInput, or a mask of the pool"
    model, draw = bert(num_hidden_layers=1, hidden_size=4, intermediate_size=4), random.Random(1)
    mask = omp(model).mask
    write_mask(tmp_path/"packed.safetensors", mask)
    export_prune(mask, tmp_path/"prune.safetensors")
    torch.save({f"{name}_mask": kept.float() for name, kept in mask.items()}, tmp_path/"mask.pt")
    for path in sorted(tmp_path.iterdir()):
        assert read_any_mask(path, model) == mask
        data = path.read_bytes()
        for _ in range(170):
            path.write_bytes(damage(data, draw))
            try: found = read_any_mask(path, model)
            except BadInput as error: assert "\n" not in str(error); continue
            assert found.shapes == mask.shapes


@pytest.mark.parametrize("model", ["micro", "folder", "relative folder", "name on the Hub"])
def test_the_cards_own_lines_run(tmp_path, monkeypatch, capsys, model):
    import huggingface_hub
    bert(kind=BertForPreTraining).bfloat16().save_pretrained(tmp_path/"my-bert")
    monkeypatch.chdir(tmp_path)
    named = {"micro": "micro", "folder": str(tmp_path/"my-bert"), "relative folder": "my-bert", "name on the Hub": "someone/bert"}[model]
    if model == "name on the Hub":
        download = transformers.AutoModelForSequenceClassification.from_pretrained
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *words: "cached")
        monkeypatch.setattr(transformers.AutoModelForSequenceClassification, "from_pretrained", lambda name, **options: download(tmp_path/"my-bert" if name == named else name, **options))
    base = download(tmp_path/"my-bert", dtype=torch.float32) if model == "name on the Hub" else base_of(named)
    mask = topk_mask(magnitude(prunable(base)), .5)
    ticket = Ticket(mask, provenance_of(base, mask, model=named, method="omp", source=f"mnli+{tmp_path}/mine.csv"))
    monkeypatch.chdir(ticket.save(tmp_path/"runs"/"r1"/"ticket"))
    card = (tmp_path/"runs"/"r1"/"ticket"/"README.md").read_text()
    assert str(tmp_path) not in card and "mnli+mine.csv" in card
    lines, scope = card.split("```python\n")[1].split("```")[0], {}
    exec(lines, scope)
    assert scope["held"].mask == mask and all((scope["model"].get_parameter(name)[~kept] == 0).all() for name, kept in mask.items())


def test_a_run_is_named_like_its_ticket(tmp_path, monkeypatch):
    ticket = omp(bert())
    ticket.save(tmp_path/"runs"/"mrpc-omp-s50-r0-1a2b3c"/"ticket")
    monkeypatch.chdir(tmp_path)
    for name in ("runs/mrpc-omp-s50-r0-1a2b3c", "runs/mrpc-omp-s50-r0-1a2b3c/ticket"):
        assert Ticket.from_pretrained(name).mask == ticket.mask and ticket_name(name) == "mrpc-omp-s50-r0-1a2b3c"


def layouts(mask):
    "State dicts as the released codes write them, from their sources"
    plain = {f"{name}_mask": kept for name, kept in mask.items()}
    return {"BERT-Tickets": {name: kept.float() for name, kept in plain.items()}, "TAMT, pruned": plain, "TAMT, trained": dict(mask),
            "several GPUs": {f"module.{name}": kept.float() for name, kept in plain.items()}, "checkpoint": {"epoch": 3, "state_dict": {f"module.{name}": kept for name, kept in plain.items()}},
            "bare trunk": {base_name(name): kept.byte() for name, kept in plain.items()}, "with weights": plain | {f"{name}_orig": torch.randn(kept.shape) for name, kept in mask.items()} | {"classifier.bias": torch.ones(2)}}


@pytest.mark.parametrize("pool", ["encoder", "encoder+pooler", "encoder+embeddings+pooler"])
@pytest.mark.parametrize("layout", layouts({}))
def test_published_layouts_are_read(tmp_path, layout, pool):
    model = bert()
    mask = omp(model, pool=pool).mask
    torch.save(layouts(mask)[layout], tmp_path/"mask.pt")
    assert read_any_mask(tmp_path/"mask.pt", model, pool) == mask
    assert list(read_any_mask(tmp_path/"mask.pt", bert(kind=BertModel), pool)) == [base_name(name) for name in mask]


BROKEN = {
    "another pool": (lambda mask: {f"{name}_mask": kept for name, kept in mask.items()} | {"bert.pooler.dense.weight_mask": torch.ones(16, 16)}, "1 members outside of the pool encoder of this model, among them pooler.dense.weight; it fits the pool encoder\\+pooler"),
    "half a pool": (lambda mask: dict(list(mask.items())[:5]), "lacks 7 members of the pool encoder"),
    "another model": (lambda mask: {name: torch.ones(32, 32) for name in mask}, "is for another model: encoder.layer.0.attention.self.query.weight is \\(32, 32\\) in it, \\(16, 16\\) in the model"),
    "another family": (lambda mask: {name.replace("bert.", "roberta."): kept for name, kept in mask.items()}, "is for another architecture: roberta.encoder"),
    "empty": (lambda mask: {}, "no entries that end in _mask"),
    "no masks": (lambda mask: {name: torch.randn(kept.shape) for name, kept in mask.items()}, "no entries that end in _mask"),
    "scores": (lambda mask: {f"{name}_mask": .02 * kept for name, kept in mask.items()}, "must hold 0 and 1 only"),
    "NaN": (lambda mask: {f"{name}_mask": torch.full(kept.shape, float("nan")) for name, kept in mask.items()}, "must hold 0 and 1 only"),
    "a key that looks like a mask": (lambda mask: {f"{name}_mask": kept for name, kept in mask.items()} | {"attention_mask": torch.ones(1, 16)}, "1 members outside of the pool encoder of this model, among them attention"),
    "a list": (lambda mask: list(mask.values()), "must hold a state dict of tensors, got list"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_masks_that_do_not_fit_are_refused(tmp_path, kind):
    model, (change, message) = bert(), BROKEN[kind]
    torch.save(change(dict(omp(model).mask)), tmp_path/"mask.pt")
    with pytest.raises(BadInput, match=message): read_any_mask(tmp_path/"mask.pt", model)


def test_a_pooler_that_the_model_lacks_is_left_out(tmp_path):
    mask = omp(bert(), pool="encoder+pooler").mask
    write_mask(tmp_path/"packed.safetensors", mask)
    with pytest.warns(UserWarning, match="pooler"): found = read_any_mask(tmp_path/"packed.safetensors", bert(kind=BertForMaskedLM), "encoder+pooler")
    assert len(found) == len(mask) - 1


def test_exported_masks_go_back_into_torch_prune(tmp_path):
    from safetensors.torch import load_file
    model, twin = bert(), bert()
    mask = omp(model).mask
    entries = load_file(export_prune(mask, tmp_path/"prune.safetensors"))
    for name, kept in entries.items(): prune.custom_from_mask(twin.get_submodule(name.removesuffix(".weight_mask")), "weight", kept)
    with hold(model, mask):
        for name in mask: assert torch.equal(twin.get_submodule(name.removesuffix(".weight")).weight, model.get_parameter(name))
    fresh = bert()
    for name in mask: prune.identity(fresh.get_submodule(name.removesuffix(".weight")), "weight")
    assert not fresh.load_state_dict(entries, strict=False).unexpected_keys
    torch.save(fresh.state_dict(), tmp_path/"state.pt")
    assert read_any_mask(tmp_path/"state.pt", bert()) == mask


def random_ticket(model, seed, sparsity):
    mask = topk_mask({name: torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) for name, weight in prunable(model).items()}, sparsity)
    return Ticket(mask, provenance_of(model, mask, method="random", seed=seed, pool="encoder"))


@settings(max_examples=30, deadline=None)
@given(operation=st.sampled_from(["union", "intersection", "difference"]), levels=st.lists(st.sampled_from([.1, .5, .9]), min_size=2, max_size=3), sparsity=st.sampled_from([None, .05, .4, .75, .97]), scope=st.sampled_from(["global", "matrix"]))
def test_arithmetic_is_that_of_sets(operation, levels, sparsity, scope):
    model = bert()
    tickets = [(f"t{seed}", random_ticket(model, seed, level)) for seed, level in enumerate(levels)]
    keys = [{(name, *place) for name, kept in ticket.mask.items() for place in kept.nonzero().tolist()} for _, ticket in tickets]
    expected = {"union": set.union, "intersection": set.intersection, "difference": set.difference}[operation](*keys)
    if sparsity is None and not expected:
        with pytest.raises(BadInput, match="keeps no weight"): combine(operation, tickets)
        return
    found = combine(operation, tickets, model, sparsity, scope)
    kept = {(name, *place) for name, part in found.mask.items() for place in part.nonzero().tolist()}
    if sparsity is None: assert kept == expected
    else:
        groups = [list(found.mask)] if scope == "global" else [[name] for name in found.mask]
        size = {name: abs(model.get_parameter(name).detach()) for name in found.mask}
        for names in groups:
            ours, theirs = ({entry for entry in entries if entry[0] in names} for entries in (kept, expected))
            assert len(ours) == kept_count(sum(size[name].numel() for name in names), sparsity)
            assert ours <= theirs or theirs <= ours
            changed = [size[name][row, column] for name, row, column in ours ^ theirs]
            if ours < theirs: assert max(changed) <= min(size[name][row, column] for name, row, column in ours)
            if theirs < ours: assert min(changed) >= max(size[name][row, column] for name in names for row, column in (~found.mask[name]).nonzero().tolist())
    assert [parent["name"] for parent in found.provenance["parents"]] == [name for name, _ in tickets]
    assert found.provenance["fingerprint"] == fingerprint(model) and found.provenance["kept"] == found.mask.kept and found.provenance["method"] == operation


def test_tickets_of_other_weights_do_not_combine():
    with pytest.raises(BadInput, match="tickets must be found on one θ0, b was found on"): combine("union", [("a", omp(bert())), ("b", omp(bert(1)))])
    with pytest.raises(BadInput, match="operation must be one of union, intersection, difference"): combine("xor", [("a", omp(bert())), ("b", omp(bert()))])
    with pytest.raises(BadInput, match="masks differ in their members"): combine("union", [("a", omp(bert())), ("b", omp(bert(), pool="encoder+pooler"))])


def test_tickets_at_the_command_line(tiny_model, tmp_path, capsys, monkeypatch):
    model = base_of(str(tiny_model))
    for seed in (0, 1): random_ticket(model, seed, .5).save(tmp_path/f"r{seed}"/"ticket")
    r0, r1 = str(tmp_path/"r0"), str(tmp_path/"r1")
    assert main(["ticket", "export", r0, str(tmp_path/"prune.safetensors"), "--format", "prune"]) == 0
    assert main(["ticket", "import", str(tmp_path/"prune.safetensors"), str(tmp_path/"mine"), "--model", str(tiny_model)]) == 0
    assert main(["ticket", "verify", str(tmp_path/"mine")]) == 0
    mine = Ticket.load(tmp_path/"mine")
    assert mine.mask == Ticket.load(r0).mask and mine.provenance["parents"][0]["name"] == "prune.safetensors" and mine.provenance["pool"] == "encoder"
    assert main(["ticket", "combine", "union", r0, r1, str(tmp_path/"both"), "--sparsity", "0.5", "--model", str(tiny_model)]) == 0
    both = Ticket.load(tmp_path/"both")
    assert abs(both.mask.sparsity - .5) < 1 / both.mask.total and [parent["name"] for parent in both.provenance["parents"]] == ["r0", "r1"]
    both.apply(base_of(str(tiny_model))).release()
    capsys.readouterr()
    for words, said in [(["combine", "union", r0, r1, r0], "r0 exists already; choose a new folder"), (["combine", "union", r0, str(tmp_path/"new")], "union needs at least two tickets, got 1"),
                        (["combine", "union", r0, r1, str(tmp_path/"new"), "--sparsity", "0.5"], "a sparsity needs the model"), (["combine", "xor", r0, r1, str(tmp_path/"new")], "operation must be one of"),
                        (["import", str(tmp_path/"prune.safetensors"), str(tmp_path/"new"), "--model", str(tiny_model), "--pool", "encoder+pooler"], "lacks 1 members of the pool encoder+pooler"),
                        (["import", str(tmp_path/"none.pt"), str(tmp_path/"new"), "--model", str(tiny_model)], "none.pt does not exist"),
                        (["export", r0, str(tmp_path/"new.pt")], "file must end in .safetensors"), (["export", r0, str(tmp_path/"new.safetensors"), "--format", "onnx"], "format must be one of prune")]:
        assert main(["ticket", *words]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("new")]


def test_pools_are_named_alike_in_spec_and_weights():
    from lottery_nb.spec import POOLS as named
    assert set(named) == set(POOLS)
