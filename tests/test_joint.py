"""Training on several tasks over one encoder, against a loop written out."""
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertTokenizer

from lottery_nb.joint import Batches, Joint, finetune_jointly
from lottery_nb.masks import Mask
from lottery_nb.spec import RunSpec
from lottery_nb.tasks import get_task
from lottery_nb.training import by_length, encoded, mask_tokens
from lottery_nb.weights import prunable

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the a cat dog sleeps barks now well".split()
TOKENIZER = BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)}, model_max_length=16)
SPECS = [RunSpec(task="sst2", batch_size=8, learning_rate=2e-3, warmup=.25, max_length=12), RunSpec(task="mlm", batch_size=4, max_length=12)]
TASKS = [get_task("sst2"), get_task("mlm")]


def nets():
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_position_embeddings=16,
                        hidden_dropout_prob=0., attention_probs_dropout_prob=0.)
    return [BertForSequenceClassification(config).eval(), BertForMaskedLM(config).eval()]


def texts(n, seed):
    draw = random.Random(seed)
    rows = [" ".join(map(draw.choice, (["the", "a"], ["cat", "dog"], ["sleeps", "barks"], ["now", "well"]))) for _ in range(n)]
    return {"train": Dataset.from_dict({"text": rows, "label": [int("sleeps" in row) for row in rows]})}


DATA = [texts(30, 0), texts(11, 1)]


def by_hand(length, mask=None):
    "The same training as a plain loop: batches in turn, summed gradients of nothing, AdamW, clipping, warm-up and decay"
    joint = Joint(nets()).train()
    batches = Batches([encoded(spec, task, data, TOKENIZER, "train") for spec, task, data in zip(SPECS, TASKS, DATA)], [8, 4], TOKENIZER, 0, [length // 2, length // 2])
    optimizer = torch.optim.AdamW(joint.parameters(), lr=2e-3, weight_decay=0.)
    pruned = prunable(joint.nets[0], "encoder") if mask is not None else {}
    for step in range(length):
        for name, weight in pruned.items(): weight.data *= mask[name]
        batch = batches[step]
        which = batch.pop("which")
        assert which == step % 2
        if which: batch["input_ids"], batch["labels"] = mask_tokens(batch["input_ids"], TOKENIZER, 0, step)
        joint(which, **batch).loss.backward()
        for name, weight in pruned.items(): weight.grad *= mask[name]
        torch.nn.utils.clip_grad_norm_(joint.parameters(), 1.)
        rising = .25 * length
        for group in optimizer.param_groups: group["lr"] = 2e-3 * (step / rising if step < rising else (length - step) / (length - rising))
        optimizer.step()
        optimizer.zero_grad()
    for name, weight in pruned.items(): weight.data *= mask[name]
    return joint


@pytest.mark.parametrize("masked", [False, True])
def test_joint_training_is_the_loop_written_out(masked, tmp_path):
    models = nets()
    mask = Mask({name: torch.rand(w.shape, generator=torch.Generator().manual_seed(3)) < .6 for name, w in prunable(models[0], "encoder").items()}) if masked else None
    finetune_jointly(models, TASKS, DATA, TOKENIZER, SPECS, tmp_path, lengths=[6, 6], mask=mask)
    expected = dict(by_hand(12, mask).named_parameters())
    for name, p in Joint(models).named_parameters(): torch.testing.assert_close(p, expected[name], atol=2e-6, rtol=1e-5)


def test_the_encoder_is_shared_and_stays_so(tmp_path):
    models = nets()
    before = models[1].cls.predictions.bias.clone()
    finetune_jointly(models, TASKS, DATA, TOKENIZER, SPECS, tmp_path, lengths=[2, 2])
    assert models[1].bert is models[0].bert
    assert models[1].cls.predictions.decoder.weight is models[0].bert.embeddings.word_embeddings.weight
    assert not torch.equal(models[1].cls.predictions.bias, before)
    assert not list(Path(tmp_path).glob("checkpoint-*"))


def test_every_example_is_seen_once_per_epoch_in_another_order():
    features = [encoded(spec, task, data, TOKENIZER, "train") for spec, task, data in zip(SPECS, TASKS, DATA)]
    batches = Batches(features, [8, 4], TOKENIZER, seed=1, lengths=[50, 50])
    epochs = [sum((batches.rows(2 * turn)[1] for turn in range(4 * e, 4 * e + 4)), []) for e in range(3)]
    assert all(sorted(epoch) == list(range(30)) for epoch in epochs) and epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("lengths", [[6, 6], [9, 2], [1, 7], [0, 3]])
def test_each_task_gets_its_own_steps_spread_evenly(lengths):
    "As many as alone, in the same order of its examples; at any moment both are equally far, within a batch"
    features = [encoded(spec, task, data, TOKENIZER, "train") for spec, task, data in zip(SPECS, TASKS, DATA)]
    batches = Batches(features, [8, 4], TOKENIZER, seed=1, lengths=lengths)
    alone = [Batches(features, [8, 4], TOKENIZER, seed=1, lengths=[n if i == which else 0 for i, n in enumerate(lengths)]) for which in (0, 1)]
    seen = [batches.rows(number) for number in range(len(batches))]
    for which in (0, 1): assert [row for row in seen if row[0] == which] == [alone[which].rows(turn) for turn in range(lengths[which])]
    for number in range(1, len(seen) + 1):
        for which in (0, 1): assert abs(sum(row[0] == which for row in seen[:number]) - lengths[which]*number/len(seen)) <= 1


def test_a_task_by_length_has_batches_of_its_own(tmp_path):
    "Its examples come once an epoch, in the order of `by_length`; the other task is left as it is"
    features = [encoded(spec, task, data, TOKENIZER, "train") for spec, task, data in zip(SPECS, TASKS, DATA)]
    plain, sorted_ = (Batches(features, [8, 4], TOKENIZER, 0, [8, 6], kinds) for kinds in (None, ["length", "shuffled"]))
    rows = [row for number in range(len(sorted_)) for which, some in [sorted_.rows(number)] if not which for row in some]
    lengths = [len(ids) for ids in features[0]["input_ids"]]
    assert rows == by_length(lengths, 8, 0, 0) + by_length(lengths, 8, 0, 1)
    assert all(plain.rows(number) == sorted_.rows(number) for number in range(len(plain)) if plain.rows(number)[0])
    finetune_jointly(nets(), TASKS, DATA, TOKENIZER, [replace(SPECS[0], batches="length"), SPECS[1]], tmp_path, lengths=[2, 2])
