"""Sharing: tickets go to a Hub and come back, and whatever it answers is one sentence."""
import json
import os
import re
import socket
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from hub_stand_in import stand_in
from huggingface_hub import ModelCard, ModelHubMixin
from transformers import BertConfig, BertForSequenceClassification

from lottery_nb.files import BadInput, write_json
from lottery_nb.masks import Mask
from lottery_nb.scores import magnitude
from lottery_nb.select import topk_mask
from lottery_nb.spec import make_spec
from lottery_nb.tickets import Ticket, card, density_picture, provenance_of, tickets_compared
from lottery_nb.weights import prunable

TINY = dict(num_hidden_layers=2, hidden_size=16, num_attention_heads=2, intermediate_size=32, vocab_size=40, max_position_embeddings=16)
CALLS = """
import contextlib, io, json, sys
from lottery_nb.cli import main
made, answers = {}, {}
for name, words in json.loads(sys.argv[1]).items():
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err: code = main([word.format(**made) for word in words])
    made[name], answers[name] = out.getvalue().strip().rpartition("/")[2], (code, out.getvalue(), err.getvalue())
print(json.dumps(answers))
"""


def python(code, *words, folder, **settings):
    "Run code with its own cache of the Hub and no token but the one it is given"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    quiet = {"HF_HOME": str(folder/"hf"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=folder, capture_output=True, text=True, env=clean | quiet | {"PYTHONPATH": str(ROOT)} | settings)
    assert done.returncode == 0, done.stderr
    return done.stdout


def calls(commands, folder, **settings):
    "Call after call of the command line in one process: name → exit code, output, complaint"
    return json.loads(python(CALLS, json.dumps(commands), folder=folder, **settings).splitlines()[-1])


def bert():
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**TINY)).eval()


def omp(sparsity, model="tiny/bert"):
    base = bert()
    mask = topk_mask(magnitude(prunable(base)), sparsity)
    return Ticket(mask, provenance_of(base, mask, model=model, method="omp", pool="encoder", seed=0, source="sst2"))


def finished_run(folder, ticket):
    "A run's folder, as far as a card reads it"
    ticket.save(folder/"ticket")
    spec = {"task": "sst2", "model": "tiny/bert", "method": "omp", "sparsity": .5, "data_dir": "/home/ann/glue"}
    write_json(folder/"result.json", {"id": folder.name, "template": "ticket", "spec": spec, "task": "sst2", "seed": 0, "metric": "accuracy", "score": .875,
                                      "full_score": .9, "sparsity": ticket.mask.sparsity, "data": {"rows": {"train": 100, "dev": 40}}})
    return folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    "What a push and pulls of all kinds did: the folder, the Hub, and the answers of the command line"
    folder = tmp_path_factory.mktemp("shared")
    bert().save_pretrained(folder/"base")
    finished_run(folder/"run", omp(.5))
    omp(.8).save(folder/"sparser")
    omp(.5, model=str(folder/"base")).save(folder/"local")
    with stand_in() as (address, hub):
        hub.add("tiny/bert", {path.name: path.read_bytes() for path in (folder/"base").iterdir()} | {"README.md": b"---\nlicense: mit\n---\n"})
        hub.add("ann/empty", {"notes.txt": b"nothing"})
        hub.add("ann/hidden", {}, private=True)
        ticket = ["ticket", "push", "run", "ann/omp", "--token", "hf_writer"]
        commands = {
            "first": [*ticket, "--private", "--message", "At a half"],
            "branch": ["ticket", "push", "sparser", "ann/omp", "--token", "hf_writer", "--revision", "sparser"],
            "second": ["ticket", "push", "sparser", "ann/omp", "--token", "hf_writer", "--message", "At 80 %"],
            "wrong pull": ["ticket", "pull", "ann/omp", "refused", "--token", "hf_wrong"], "stranger": ["ticket", "pull", "ann/omp", "refused"],
            "pulled": ["ticket", "pull", "ann/omp", "pulled", "--token", "hf_reader"],
            "by commit": ["ticket", "pull", "ann/omp", "by_commit", "--revision", "{first}", "--token", "hf_reader"],
            "by branch": ["ticket", "pull", "ann/omp", "by_branch", "--revision", "sparser", "--token", "hf_reader"],
            "onto a folder": ["ticket", "pull", "ann/omp", "run", "--token", "hf_reader"],
            "no revision": ["ticket", "pull", "ann/omp", "refused", "--revision", "nowhere", "--token", "hf_reader"],
            "no repository": ["ticket", "pull", "ann/nothing", "refused", "--token", "hf_reader"], "no name": ["ticket", "pull", "a b/c d", "refused"],
            "no ticket": ["ticket", "pull", "ann/empty", "refused"], **{name: ["ticket", "pull", f"{name}/ticket", "refused"] for name in ("down", "busy", "gated")},
            "wrong push": ["ticket", "push", "run", "ann/omp", "--token", "hf_wrong"], "no token": ["ticket", "push", "run", "ann/omp"],
            "no right": ["ticket", "push", "run", "ann/omp", "--token", "hf_reader"], "no right to make": ["ticket", "push", "run", "ann/new", "--token", "hf_reader"],
            "of a folder": ["ticket", "push", "local", "ann/local", "--token", "hf_writer"],
            "compare": ["ticket", "compare", "run", "sparser", "pulled", "--json"],
        }
        answers = calls(commands, folder, HF_ENDPOINT=address)
        yield folder, hub, address, answers


def sentence(answer):
    "The one line of a refusal"
    code, out, err = answer
    assert (code, out) == (2, "") and len(err.strip().splitlines()) == 1 and err.startswith("lottery-nb: ")
    return err.strip().removeprefix("lottery-nb: ")


def test_a_ticket_is_what_the_library_calls_a_model():
    assert issubclass(Ticket, ModelHubMixin)


def test_push_makes_one_commit_of_three_files(shared):
    _, hub, address, answers = shared
    assert answers["first"] == [0, f"ann/omp: {address}/ann/omp/commit/{answers['first'][1].strip()[-40:]}\n", ""]
    assert hub.repos["ann/omp"]["private"]
    assert [made for made in hub.messages if made[0] == "ann/omp"] == [("ann/omp", "main", "Made"), ("ann/omp", "main", "At a half"), ("ann/omp", "sparser", "Upload ticket"), ("ann/omp", "main", "At 80 %")]
    assert all(set(files) <= {"mask.safetensors", "ticket.json", "README.md"} for files in hub.repos["ann/omp"]["commits"].values())


def test_pull_brings_the_bits_that_were_pushed(shared):
    folder, _, _, answers = shared
    assert [answers[name][0] for name in ("pulled", "by commit", "by branch")] == [0, 0, 0]
    half, sparser = Ticket.load(folder/"run"), Ticket.load(folder/"sparser")
    assert (Ticket.load(folder/"pulled").mask, Ticket.load(folder/"by_commit").mask, Ticket.load(folder/"by_branch").mask) == (sparser.mask, half.mask, sparser.mask)
    assert Ticket.load(folder/"by_commit").provenance == half.provenance
    assert {path.name for path in (folder/"pulled").iterdir()} == {"mask.safetensors", "ticket.json", "README.md"}


@pytest.mark.parametrize("name, said", {
    "wrong pull": r"the Hub at \S+ refuses the token.*hf auth login.*HF_TOKEN", "stranger": r"no repository ann/omp at \S+ that you may see.*needs a token",
    "no revision": r"ann/omp at \S+ has no such revision", "no repository": r"no repository ann/nothing at", "no name": r"a b/c d is neither a folder here nor the name of a repository",
    "no ticket": r"ann/empty holds no ticket", "down": r"the Hub at \S+ answers 503.*try again later", "onto a folder": r"run exists already",
    "busy": r"the Hub at \S+ has had too many requests from here", "gated": r"gated/ticket is gated: ask for access on its page \S+/gated/ticket",
    "wrong push": r"refuses the token", "no token": r"refuses the token, or there is none", "no right": r"this token has no right to do that with ann/omp",
    "no right to make": r"this token has no right to do that with ann/new"}.items())
def test_a_refusal_is_one_sentence(name, said, shared):
    folder, hub, _, answers = shared
    assert re.search(said, sentence(answers[name]))
    assert not (folder/"refused").exists() and not list(folder.glob(".*"))
    assert "ann/new" not in hub.repos


def test_compare_says_what_tickets_share_beside_chance(shared):
    rows = json.loads(shared[3]["compare"][1])
    assert [(row["ticket"], row["theta0"]) for row in rows] == [("run", "same"), ("sparser", "same"), ("pulled", "same")]
    assert rows[0]["jaccard"] == 1 and rows[1]["jaccard"] == pytest.approx(.2/.5, abs=1e-3)     # magnitudes: the sparser lies inside
    assert rows[1]["chance"] == pytest.approx(.1/.6, abs=1e-3) and rows[1] | {"ticket": ""} == rows[2] | {"ticket": ""}


def test_chance_is_what_independent_masks_share():
    draw = torch.Generator().manual_seed(0)
    first, second = (Ticket(Mask({"a": torch.rand(1000, 1000, generator=draw) < share})) for share in (.3, .6))
    row = tickets_compared([("first", first), ("second", second)])[1]
    assert row["jaccard"] == pytest.approx(row["chance"], abs=2e-3) and row["shared"] == pytest.approx(.6, abs=2e-3)


def test_the_card_says_what_a_reader_asks(shared):
    folder, hub, _, answers = shared
    text = hub.repos["ann/omp"]["commits"][answers["first"][1].strip()[-40:]]["README.md"].decode()
    about = ModelCard(text).data
    assert (about.library_name, about.license, about.base_model, about.model_name) == ("lottery-nb", "mit", "tiny/bert", "run")
    assert [(found.metric_type, found.metric_value, found.dataset_name) for found in about.eval_results] == [("accuracy", .875, "sst2")]
    for row in ("| base model | `tiny/bert` |", "| licence | mit |", "| data | sst2: 100 rows to train, 40 to judge |",
                "| score | accuracy 0.8750 at sparsity 0.5000, retrained, seed 0 |", "| full model's score | accuracy 0.9000 |"): assert row in text
    assert density_picture(Ticket.load(folder/"run").mask) in text
    assert "/home/ann" not in text and str(folder) not in text


def test_the_card_makes_the_run_again(shared):
    from lottery_nb.cli import read_fields
    text = (shared[0]/"by_commit"/"README.md").read_text()
    words = re.search(r"^lottery-nb run ticket (.+)$", text, re.M)[1].split()
    assert make_spec("ticket", read_fields("ticket", words)) == make_spec("ticket", {"task": "sst2", "model": "tiny/bert", "method": "omp", "sparsity": .5, "data_dir": "glue"})


def test_a_card_without_a_run_promises_no_score(shared):
    text = (shared[0]/"pulled"/"README.md").read_text()
    assert "Make it again" not in text and "| score |" not in text and ModelCard(text).data.eval_results is None


def test_the_card_runs_as_printed(shared):
    "The lines for Python, where the base model and the ticket are on the Hub and nowhere else"
    folder, _, address, _ = shared
    lines = (folder/"by_commit"/"README.md").read_text().split("```python\n")[1].split("```")[0]
    check = "\nfrom lottery_nb.weights import prunable\nprint(sum(int((w == 0).sum()) for w in prunable(model).values()))"
    (folder/"elsewhere").mkdir(exist_ok=True)
    zeros = python(lines + check, folder=folder/"elsewhere", HF_ENDPOINT=address, HF_TOKEN="hf_reader")
    assert int(zeros) == Ticket.load(folder/"pulled").mask.total - Ticket.load(folder/"pulled").mask.kept


def test_the_librarys_verbs(shared):
    "save_pretrained with push_to_hub, from_pretrained with token and revision, the card by ModelCard"
    folder, hub, address, _ = shared
    code = """
from huggingface_hub import ModelCard
from lottery_nb.tickets import Ticket
ticket = Ticket.from_pretrained("run")
ticket.save_pretrained("named", push_to_hub=True, repo_id="ann/named", token="hf_writer", commit_message="By its verbs")
assert Ticket.from_pretrained("ann/named").mask == Ticket.from_pretrained("named").mask == ticket.mask
assert Ticket.from_pretrained("ann/omp", revision="sparser", token="hf_reader").mask == Ticket.load("sparser").mask
assert Ticket.from_pretrained("ann/omp", "sparser", token="hf_reader", local_files_only=True).mask == Ticket.load("sparser").mask
card = ticket.push_to_hub("ann/scored", run="run", token="hf_writer", private=True)
assert ModelCard.load("ann/scored", token="hf_reader").data.eval_results[0].metric_value == .875
assert str(ticket.generate_model_card(place="ann/x")).count("ann/x") == 1
"""
    python(code, folder=folder, HF_ENDPOINT=address)
    assert ("ann/named", "main", "By its verbs") in hub.messages
    assert (hub.repos["ann/named"]["private"], hub.repos["ann/scored"]["private"]) == (False, True)


def test_saving_leaves_what_is_not_a_tickets(tmp_path):
    "A ticket in a model's folder: the mixin's own save would delete the model's config.json"
    bert().save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert omp(.5).save_pretrained(tmp_path) is None
    assert {name: (tmp_path/name).read_bytes() for name in before} == before and Ticket.load(tmp_path).mask == omp(.5).mask


def test_the_verbs_write_the_same_bytes(tmp_path):
    omp(.5).save(tmp_path/"one")
    omp(.5).save_pretrained(tmp_path/"two")
    assert {p.name: p.read_bytes() for p in (tmp_path/"one").iterdir()} == {p.name: p.read_bytes() for p in (tmp_path/"two").iterdir()}


def test_offline_the_cache_serves_and_the_rest_is_one_sentence(shared):
    folder, _, address, _ = shared
    commands = {"cached": ["ticket", "pull", "ann/omp", "cached"], "never pulled": ["ticket", "pull", "ann/other", "refused"], "push": ["ticket", "push", "run", "ann/omp", "--token", "hf_writer"]}
    answers = calls(commands, folder, HF_ENDPOINT=address, HF_HUB_OFFLINE="1")
    assert answers["cached"][0] == 0 and Ticket.load(folder/"cached").mask == Ticket.load(folder/"sparser").mask
    assert "ann/other is not in the cache of this machine, and the Hub is not asked" in sentence(answers["never pulled"])
    assert "the Hub is not asked for ann/omp: HF_HUB_OFFLINE is set" in sentence(answers["push"])


@pytest.mark.parametrize("listens", [False, True], ids=["nobody listens", "silent"])
def test_a_hub_that_does_not_answer(listens, shared, tmp_path):
    "A port where nobody listens, and one where somebody does and says nothing; what is in the cache is still served"
    folder, _, _, _ = shared
    omp(.5).save(tmp_path/"t")
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        if listens: port.listen()
        address = f"http://127.0.0.1:{port.getsockname()[1]}"
        commands = {"pull": ["ticket", "pull", "ann/never", "refused"], "push": ["ticket", "push", "t", "ann/omp", "--token", "hf_writer"],
                    "cached": ["ticket", "pull", "ann/omp", "cached"]}
        answers = calls(commands, tmp_path, HF_ENDPOINT=address, HF_HUB_ETAG_TIMEOUT="1", HF_HUB_CACHE=str(folder/"hf"/"hub"))
    for name in ("pull", "push"): assert sentence(answers[name]) == f"the Hub at {address} does not answer: check the network, or HF_ENDPOINT"
    assert answers["cached"][0] == 0 and Ticket.load(tmp_path/"cached").mask == Ticket.load(folder/"sparser").mask


def test_what_goes_to_the_hub_holds_no_path(shared):
    folder, hub, _, answers = shared
    files = hub.repos["ann/local"]["commits"][answers["of a folder"][1].strip()[-40:]]
    assert set(files) == {"mask.safetensors", "ticket.json", "README.md"} and not any(str(folder).encode() in data for data in files.values())
    assert b"Ticket.from_pretrained('ann/local')" in files["README.md"] and ModelCard(files["README.md"].decode()).data.base_model is None


def test_what_is_pulled_is_checked_and_nothing_else_is_asked_for(shared):
    "A mask that was changed on the Hub is refused, and nothing is left; a file that is no ticket's stays there"
    folder, hub, address, _ = shared
    whole = {path.name: path.read_bytes() for path in (folder/"pulled").iterdir()}
    hub.add("ann/changed", whole | {"mask.safetensors": whole["mask.safetensors"][:-1] + b"\x55"})
    hub.add("ann/more", whole | {"pytorch_model.bin": b"cos\nsystem\n"})
    answers = calls({"changed": ["ticket", "pull", "ann/changed", "refused"], "more": ["ticket", "pull", "ann/more", "more"]}, folder, HF_ENDPOINT=address)
    assert {path.name: path.read_bytes() for path in (folder/"more").iterdir()} == whole
    assert [path for _, path in hub.asked if path.endswith("ticket.json")] and not [path for _, path in hub.asked if path.endswith(".bin")]
    assert "truncated or changed" in sentence(answers["changed"]) and not (folder/"refused").exists()


def test_a_folder_that_is_no_run_has_no_result(tmp_path):
    omp(.5).save(tmp_path/"t")
    with pytest.raises(BadInput, match="is no finished run"): omp(.5).push_to_hub("ann/x", run=tmp_path/"t")


def test_the_card_of_a_method_that_is_unknown_here(tmp_path):
    result = {"template": "ticket", "spec": {"method": "somebody's own"}, "id": "x", "task": "sst2"}
    assert "Make it again" not in card(omp(.5), result=result)
