"""Tickets: round trips, damage, other models, others' formats."""
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils import prune
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel, RobertaConfig, RobertaForSequenceClassification

from lottery_nb.files import BadInput, read_json, write_json
from lottery_nb.masks import Mask
from lottery_nb.scores import magnitude
from lottery_nb.select import topk_mask
from lottery_nb.spec import POOLS
from lottery_nb.tickets import Ticket, from_prune_state, provenance_of, read_mask, write_mask
from lottery_nb.weights import prunable

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


def test_from_the_hub_fetches_only_the_tickets_files(tmp_path, monkeypatch):
    import huggingface_hub
    folder, asked = omp(bert()).save(tmp_path/"t"), {}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo, revision, allow_patterns: asked.update(repo=repo, files=allow_patterns) or str(folder))
    assert Ticket.from_pretrained("someone/ticket").mask == Ticket.load(folder).mask
    assert asked == {"repo": "someone/ticket", "files": ["ticket.json", "mask.safetensors", "README.md"]}


def test_push_to_hub_uploads_a_complete_ticket(monkeypatch):
    import huggingface_hub
    sent = {}

    class Api:
        def create_repo(self, repo, private, exist_ok): sent["repo"] = (repo, private)
        def upload_folder(self, repo_id, folder_path, commit_message):
            sent["mask"] = Ticket.load(folder_path).mask
            return "https://hub/commit"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    ticket = omp(bert())
    assert ticket.push_to_hub("me/ticket", private=True) == "https://hub/commit"
    assert sent == {"repo": ("me/ticket", True), "mask": ticket.mask}


def test_pools_are_named_alike_in_spec_and_weights():
    from lottery_nb.spec import POOLS as named
    assert set(named) == set(POOLS)
