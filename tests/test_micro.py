"The micro world: every label right by construction, nothing unknown, nothing leaked, the same bytes everywhere, and pre-training that survives a kill."
import hashlib
import json
import os
import shutil
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from lottery_nb import language, micro
from lottery_nb.files import BadInput, read_json, seal
from lottery_nb.spec import RunSpec

SEEDS = st.integers(0, 10**6)
GLUE_COLUMNS = dict(
    cola="sentence label", sst2="sentence label", mrpc="sentence1 sentence2 label", stsb="sentence1 sentence2 label", qqp="question1 question2 label",
    mnli="premise hypothesis label", qnli="question sentence label", rte="sentence1 sentence2 label", wnli="sentence1 sentence2 label", squad="id context question answers")
TINY = micro.RECIPE | dict(steps=6, batch=4, warmup=2, echoes=8, every=2)


@pytest.fixture(scope="module")
def tasks(): return {name: language.micro_task(name) for name in language.ROWS}


@pytest.fixture(scope="module")
def sample(): return list(islice(language.documents(), 20_000))


def words(row): return [w for key, value in row.items() if isinstance(value, str) and key != "id" for w in value.split()]


def meaning(event):
    "An event with each word replaced by its set of synonyms: an independent judge of what a swap or change did"
    return tuple(language.SAME.get(part, (part,)) if isinstance(part, str) else part for part in (event.agent, event.verb, event.noun, event.adjective, event.place, event.time, event.negated))


# --- the tables

def test_no_word_is_in_two_groups():
    for groups in ([g for gs in (*language.NOUN_GROUPS.values(), *language.ROLE_GROUPS.values()) for g in gs], [s for p in language.VERB_PAIRS for s in p[:2]], [s for p in language.ADJECTIVE_PAIRS for s in p[:2]]):
        flat = [word for group in groups for word in group]
        assert len(flat) == len(set(flat))


def test_antonyms_are_mutual_and_share_their_kinds():
    for word, others in language.OPPOSITE.items():
        assert all(word in language.OPPOSITE[other] and language.APPLIES[word] == language.APPLIES[other] for other in others)


def test_lexicon_is_large_enough_and_small_enough():
    assert len(language.micro_vocab()) <= 1500 and len(language.VERB_PAIRS) >= 20 and len(language.NOUN_GROUPS) == 16
    assert all(word == word.lower() and " " not in word for word in language.micro_vocab()[5:])


@settings(deadline=None, max_examples=10)
@given(SEEDS)
def test_halves_are_disjoint_and_whole(seed):
    whole, train, dev = (language.lexicon(side, seed) for side in ("whole", "train", "dev"))
    assert not train.words & dev.words and train.words | dev.words == whole.words
    for half in (train, dev): assert all(set(language.SAME.get(w, ())) <= half.words for w in half.words if language.KIND.get(w) or w in language.SAME)


# --- the operators

@settings(deadline=None)
@given(SEEDS)
def test_events_make_sense(seed):
    event = language.make_event(language.lexicon(), language.Draw(seed))
    assert language.KIND[event.noun] in language.APPLIES[event.verb] and event.noun not in language.SAME.get(event.agent, (event.agent,))
    assert not event.adjective or language.KIND[event.noun] in language.APPLIES[event.adjective]


@settings(deadline=None)
@given(SEEDS, st.integers(1, 4))
def test_swapping_synonyms_keeps_the_meaning(seed, count):
    draw = language.Draw(seed)
    event = language.make_event(language.lexicon(), draw)
    swapped = language.swap_synonyms(event, draw, count)
    assert meaning(swapped) == meaning(event) and sum(a != b for a, b in zip(event, swapped)) <= count


@settings(deadline=None)
@given(SEEDS, st.sampled_from([kind for kind in language.CHANGES if kind != "roles"]))
def test_a_change_changes_one_part_of_the_meaning(seed, kind):
    draw = language.Draw(seed)
    event = language.make_event(language.lexicon(), draw, place="in the park")
    if kind == "adjective" and not event.adjective: return
    changed, made = language.change(event, language.lexicon(), draw, (kind,))
    assert made == kind and sum(a != b for a, b in zip(meaning(event), meaning(changed))) == 1
    if kind == "antonym": assert changed.verb in language.OPPOSITE[event.verb]
    if kind == "verb": assert changed.verb not in language.OPPOSITE[event.verb]


@settings(deadline=None)
@given(SEEDS)
def test_changing_roles_swaps_agent_and_patient(seed):
    draw = language.Draw(seed)
    event = language.make_event(language.lexicon(), draw, "person", adjective="")
    changed, _ = language.change(event, language.lexicon(), draw, ("roles",))
    assert (changed.agent, changed.noun, changed.verb) == (event.noun, event.agent, event.verb)


def implies(event, hypothesis):
    "Brute-force entailment of two events, from the tables"
    if event.negated or hypothesis.negated: return meaning(event) == meaning(hypothesis)
    kind = language.KIND[event.noun]
    noun = hypothesis.noun in (*language.SAME.get(event.noun, (event.noun,)), kind, language.TOP.get(kind))
    agent = hypothesis.agent == "someone" or hypothesis.agent in language.SAME.get(event.agent, (event.agent,))
    details = all(not getattr(hypothesis, slot) or getattr(hypothesis, slot) in language.SAME.get(getattr(event, slot), (getattr(event, slot),)) for slot in ("adjective", "place", "time"))
    return noun and agent and details and hypothesis.verb in language.SAME[event.verb]


@settings(deadline=None, max_examples=300)
@given(SEEDS, st.sampled_from(language.RELATIONS), st.floats(0, 1))
def test_relations_hold(seed, relation, negated):
    draw, lex = language.Draw(seed), language.lexicon()
    event = language.make_event(lex, draw, negated=negated)
    hypothesis = language.related(event, lex, draw, relation)
    assert implies(event, hypothesis) == (relation == "entailment")
    opposed = hypothesis.negated != event.negated or hypothesis.verb in language.OPPOSITE[event.verb]
    assert opposed == (relation == "contradiction")


def test_change_reports_an_impossible_kind_by_trying_another():
    event = language.Event("tom", "catch", "owl")
    assert {language.change(event, language.lexicon(), language.Draw(i), ("adjective", "place", "roles", "negation"))[1] for i in range(20)} == {"negation"}


def test_winograd_readings_name_the_right_noun():
    for i in range(200):
        sentence, true, false = language.winograd(language.lexicon(), language.Draw(i))
        a, b = [w for w in sentence.split() if w in language.KIND][:2]
        quality = sentence.split()[-2]
        first = any(quality in language.SAME[q] for q in ("big", "heavy", "fast", "poor", "strong"))
        assert true.split()[1] == (a if first else b) and false.split()[1] == (b if first else a)


# --- the corpus and the tasks

def test_shares_sum_to_one_and_every_kind_is_said(sample):
    assert sum(language.SHARES.values()) == 100
    said = {kind for kind, _ in sample}
    assert said == set(language.DOCUMENT_KINDS)


def test_nothing_is_unknown(tasks, sample):
    known = set(language.micro_vocab())
    assert {w.removeprefix("^") for _, d in sample for w in f"{d.first} {d.second}".split()} <= known
    assert {w for splits in tasks.values() for rows in splits.values() for row in rows for w in words(row)} <= known


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_tokenizers_see_whole_words_and_fit(tasks, architecture):
    tokenizer = language.micro_tokenizer(architecture)
    for name, splits in tasks.items():
        for rows in splits.values():
            texts = list(zip(*([v for k, v in row.items() if isinstance(v, str) and k != "id"] for row in rows)))
            ids = tokenizer(*map(list, texts))["input_ids"]
            assert tokenizer.unk_token_id not in {i for row in ids for i in row}, name
            assert max(map(len, ids)) <= (60 if architecture == "bert" else 61)
            specials = {1: 2, 2: 3 if architecture == "bert" else 4}[len(texts)]
            assert [len(i) for i in ids[:50]] == [len(words(row)) + specials for row in rows[:50]]


def test_columns_labels_and_sizes(tasks):
    for name, splits in tasks.items():
        assert set(splits) == {"train", "dev"} | ({"dev_mm"} if name == "mnli" else set())
        for rows in splits.values():
            assert all(" ".join(row) == GLUE_COLUMNS[name] for row in rows)
            if name in ("stsb", "squad"): continue
            assert {row["label"] for row in rows} == set(range(3 if name == "mnli" else 2))
    scores = [row["label"] for row in tasks["stsb"]["train"]]
    assert min(scores) >= 0 and max(scores) == 5 and all(isinstance(score, float) for score in scores)


def test_squad_answers_are_where_they_say(tasks):
    for rows in tasks["squad"].values():
        for row in rows:
            [answer], [start] = row["answers"]["text"], row["answers"]["answer_start"]
            assert row["context"][start:start + len(answer)] == answer and row["context"].split().count(answer) == 1
        assert len({row["id"] for row in rows}) == len(rows)


def test_train_words_are_not_held_out_words(tasks):
    held_out = language.lexicon("dev").words
    free = {*language.FUNCTION_WORDS, *" ".join(language.PLACES + language.TIMES).split(), *language.TOP, *language.TOPS, *(q for g in language.SCHEMAS for s in g[3:] for q in language.SAME[s])}
    for name in set(tasks) - {"cola"}:   # cola's plurals and third persons are forms, looked at below
        assert not {w for row in tasks[name]["train"] for w in words(row)} & (held_out - free), name
    forms = {language.PLURAL[w] for w in held_out if w in language.PLURAL} | {language.PAST[w] for w in held_out if w in language.PAST}
    shared = {language.PLURAL[w] for w in language.lexicon("train").words if w in language.PLURAL}
    assert not {w for row in tasks["cola"]["train"] for w in words(row)} & (forms - shared - free)


def test_dev_texts_are_reserved_and_unsaid(tasks, sample):
    said = {frozenset((d.first.replace("^", ""), d.second.replace("^", ""))) for _, d in sample} | {d.first for k, d in sample if k in ("review", "present", "narrative")}
    for splits in tasks.values():
        for split, rows in splits.items():
            texts = [tuple(v for k, v in row.items() if isinstance(v, str) and k != "id") for row in rows]
            assert all(language.reserved(*text) == (split != "train") for text in texts)
            assert len(set(texts)) == len(texts)
            if split != "train": assert not said & {frozenset(text) if len(text) > 1 else text[0] for text in texts}


def test_half_of_labels_cannot_be_guessed_by_a_constant(tasks):
    for name in ("sst2", "mnli", "qnli", "rte", "wnli"):
        labels = [row["label"] for row in tasks[name]["dev"]]
        assert max(labels.count(label) for label in set(labels)) / len(labels) < .6


def test_same_bytes_for_a_seed_and_other_bytes_for_another(sample):
    digest = lambda value: hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
    assert digest(language.micro_task("mrpc")) == GOLDEN["mrpc"] and digest(sample) == GOLDEN["corpus"] and digest(language.micro_vocab()) == GOLDEN["vocabulary"]
    assert language.micro_task("mrpc", seed=1) != language.micro_task("mrpc")


GOLDEN = dict(mrpc="120f48bb27a8920d", corpus="217876132998643b", vocabulary="c804e749188b2910")


def test_a_changed_world_or_pre_training_has_another_number():
    "Old runs and stages are told from new ones by WORLD alone: raise it together with these names"
    assert (micro.WORLD, micro.micro_id(), micro.micro_id("roberta")) == (2, "micro-bert-2c502eb0", "micro-roberta-16dcaa6e")
    assert RunSpec(task="rte").differing()["world"] == micro.WORLD and "world" not in RunSpec(task="rte", model="bert-base-uncased").differing()


def test_pre_training_gives_the_same_bytes_whatever_the_environment_says_of_threads(tmp_path):
    code = "import sys; from lottery_nb.micro import RECIPE, pretrain; pretrain(sys.argv[1], recipe=RECIPE | dict(steps=3, batch=8, warmup=1, echoes=8))"
    weights = []
    for threads in ("1", "2"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path/threads)], env=os.environ | {"OMP_NUM_THREADS": threads}, check=True, capture_output=True)
        weights.append((tmp_path/threads/"model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_bad_input():
    for call in (lambda: language.micro_task("rt"), lambda: micro.pretrained("gpt"), lambda: language.corpus_lines("test"), lambda: language.lexicon("left")):
        with pytest.raises(BadInput): call()


# --- pre-training

def killed_after(monkeypatch, count):
    "Make the training die after a number of steps"
    step, done = micro.Trainee.step, []
    def dying(self, *args):
        if len(done) == count: raise KeyboardInterrupt
        done.append(1)
        return step(self, *args)
    monkeypatch.setattr(micro.Trainee, "step", dying)


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_a_killed_pretraining_gives_the_same_bytes(tmp_path, monkeypatch, architecture):
    for name in ("whole", "killed"): (tmp_path/name).mkdir()
    micro.pretrain(tmp_path/"whole", architecture, TINY)
    with monkeypatch.context() as patch:
        killed_after(patch, 5)
        with pytest.raises(KeyboardInterrupt): micro.pretrain(tmp_path/"killed", architecture, TINY)
    assert [p.name for p in (tmp_path/"killed").iterdir()] == ["checkpoint.safetensors"]
    micro.pretrain(tmp_path/"killed", architecture, TINY)
    assert seal(tmp_path/"killed").read_text() == seal(tmp_path/"whole").read_text()


def test_lessons_begin_with_echoes_and_hide_empty_labels():
    lessons = micro.lessons(micro.RECIPE | dict(steps=100, batch=30, echoes=500))
    assert len(lessons) == 3000
    different = [sum(a != b for a, b in zip(d.first.split(), d.second.split())) for d in lessons[:400]]
    assert all((d.label == 1) == (count > 0) for d, count in zip(lessons[:400], different))
    shares = [sum(d.label == label for d in lessons[500:]) / 2500 for label in (-100, 0, 1)]
    assert abs(shares[0] - sum(language.SHARES[kind] for kind in set(language.DOCUMENT_KINDS) - language.LABELLED) / 100) < .04 and min(shares) > .2


def test_echoes_are_unsaid_where_reserved():
    assert not any(language.reserved(d.first.replace("^", ""), d.second.replace("^", "")) for d in micro.lessons(micro.RECIPE | dict(steps=10, batch=100, echoes=900)))


def test_threads_are_given_back(tmp_path):
    before = torch.get_num_threads()
    micro.pretrain(tmp_path, "bert", TINY | dict(steps=3, warmup=1))
    assert torch.get_num_threads() == before


def test_random_weights_do_not_touch_the_global_generator():
    torch.manual_seed(1); expected = torch.rand(1)
    torch.manual_seed(1); micro.random_model(seed=5); micro.Trainee("roberta", TINY)
    assert torch.rand(1) == expected


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_folder_works_with_auto_classes(tmp_path, monkeypatch, architecture):
    from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer
    monkeypatch.setenv("LOTTERY_NB_CACHE", str(tmp_path))
    monkeypatch.setattr(micro, "RECIPE", TINY)
    micro.micro_id.cache_clear()
    monkeypatch.setattr(micro, "pretrain", lambda folder, architecture, make=micro.pretrain: make(folder, architecture, TINY))
    folder = micro.pretrained(architecture)
    micro.micro_id.cache_clear()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(["tom fixed a car ."], ["he mended it in the park ."], return_tensors="pt")
    assert tokenizer.convert_ids_to_tokens(batch["input_ids"][0])[1:6] == "tom fixed a car .".split()
    assert (tokenizer.pad_token_id, tokenizer.mask_token_id) == dict(bert=(0, 4), roberta=(1, 4))[architecture]
    assert AutoModelForMaskedLM.from_pretrained(folder)(**batch).logits.shape[-1] == len(language.micro_vocab())
    assert AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)(**batch).logits.shape == (1, 3)


def test_ids_of_pack_and_tokenizer_agree(sample):
    for architecture in ("bert", "roberta"):
        docs = [d for _, d in sample[:50]]
        packed, tokenizer = micro.pack(docs, architecture), language.micro_tokenizer(architecture)
        texts = [[getattr(d, side).replace("^", "") for d in docs] for side in ("first", "second")]
        encoded = tokenizer(*texts)
        for i, ids in enumerate(encoded["input_ids"]): assert packed.tokens[i][packed.tokens[i] >= 0].tolist() == ids
        if architecture == "bert": assert [row.index(1) for row in encoded["token_type_ids"]] == packed.middle.tolist()


def test_hidden_words_follow_the_shares(sample):
    packed = micro.pack([d for _, d in sample[:4000]])
    batch = micro.masked_batch(packed, np.arange(4000), 0, micro.RECIPE)
    hidden, salient, words_ = batch["hidden"].numpy(), packed.salient[:, :batch["hidden"].shape[1]], packed.tokens >= 5
    words_ = words_[:, :hidden.shape[1]]
    assert abs(hidden[salient].mean() - .6) < .03 and abs(hidden[words_ & ~salient].mean() - .15) < .01 and not hidden[~words_].any()
    shown = batch["input_ids"].numpy()[hidden]
    assert abs((shown == 4).mean() - .8) < .02 and abs((shown == batch["words"].numpy()).mean() - .1) < .02


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_the_shipped_model_is_of_this_recipe_and_whole(architecture, tmp_path, monkeypatch):
    "It is taken from the package, as it was sealed, and read by the auto classes; nothing is trained"
    monkeypatch.setenv("LOTTERY_NB_CACHE", str(tmp_path))
    folder = micro.pretrained(architecture)
    assert folder.name == micro.micro_id(architecture) and folder.parent.name == "data" and not list(tmp_path.iterdir())
    story = read_json(folder/"pretraining.json")
    assert story["recipe"] == micro.RECIPE and len(story["losses"]) == micro.RECIPE["steps"]
    assert np.mean(story["losses"][-200:]) < 2 < np.mean(story["losses"][:200])


def test_a_damaged_shipped_model_is_one_sentence(tmp_path, monkeypatch):
    shutil.copytree(micro.shipped(), tmp_path/"data"/micro.micro_id())
    monkeypatch.setattr(micro, "package_file", lambda name: tmp_path/"data"/name)
    assert micro.shipped().parent == tmp_path/"data" and micro.shipped("roberta") is None
    (tmp_path/"data"/micro.micro_id()/"model.safetensors").write_bytes(b"torn")
    with pytest.raises(BadInput, match="model.safetensors"): micro.shipped()


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_the_recipe_makes_the_shipped_model_again_from_its_first_steps(architecture, tmp_path):
    "Shortened: the losses of the first steps are those on record, to what other processors round"
    story = read_json(micro.shipped(architecture)/"pretraining.json")
    packed = micro.pack(micro.lessons(micro.RECIPE), architecture)
    trainee, steps = micro.Trainee(architecture, micro.RECIPE), micro.batches(packed, micro.RECIPE)
    losses = [trainee.step(i, micro.masked_batch(packed, steps[i], i, micro.RECIPE, architecture)) for i in range(8)]
    assert losses == pytest.approx(story["losses"][:8], abs=2e-3)
