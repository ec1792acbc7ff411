"""A mask-training step beside a dense MLM step and the usual masked module, in one process.

dense MLM step   full-vocabulary logits, AdamW parameter by parameter
usual module     scores binarised into a clone by two indexed writes, W*M materialised by autograd (the whole embedding too), a kthvalue per
                 matrix at every step, full-vocabulary logits, AdamW parameter by parameter (the way of the released code, Liu et al. 2022)
this library     `MaskTraining.advance`: the threshold is refreshed at every step as well
"""
import argparse
import gc
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from lottery_nb.tamt import MaskSettings, MaskTraining, initial_scores, start_mask
from lottery_nb.weights import prunable

SIZES = {
    "L4 H256": dict(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024),
    "L6 H384": dict(hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=1536),
}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
POOLS = ("encoder", "encoder+embeddings")


class Words:
    "The special tokens of BERT, without a vocabulary file"
    mask_token, pad_token_id, sep_token_id, mask_token_id, all_special_ids = "[MASK]", 0, 102, 103, [0, 100, 101, 102, 103]

    def __len__(self): return 30522
    def convert_tokens_to_ids(self, token): return self.mask_token_id


class Binarise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, score, threshold):
        mask = score.clone()
        mask[score <= threshold] = 0.0
        mask[score > threshold] = 1.0
        return mask

    @staticmethod
    def backward(ctx, grad): return grad, None


class UsualModule(nn.Module):
    "A linear map or embedding with a trainable score per weight"
    def __init__(self, module, score, sparsity):
        super().__init__()
        self.module, self.score, self.rank = module, nn.Parameter(score), int(score.numel() * sparsity)

    def forward(self, x):
        threshold = self.score.detach().flatten().kthvalue(self.rank).values
        weight = self.module.weight * Binarise.apply(self.score, threshold)
        if isinstance(self.module, nn.Embedding): return F.embedding(x, weight, self.module.padding_idx)
        return F.linear(x, weight, self.module.bias)


def build(size):
    torch.manual_seed(0)
    return BertForMaskedLM(BertConfig(**SIZES[size])).train()


def full_step(model, parameters, ids):
    "A closure that trains on one batch with logits for every token"
    optimizer = torch.optim.AdamW(parameters, lr=5e-5, foreach=False, fused=False)
    labels = torch.where(torch.rand(ids.shape) < .15, ids, -100)

    def step():
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return step


def dense(size, ids):
    model = build(size)
    return full_step(model, list(model.parameters()), ids)


def usual(size, ids, pool, sparsity=.7):
    model = build(size).requires_grad_(False)
    scores = initial_scores(start_mask(prunable(model, pool), sparsity))
    for name, score in scores.items():
        path = name.removesuffix(".weight")
        model.set_submodule(path, UsualModule(model.get_submodule(path), score, sparsity))
    head = [p for p in model.cls.parameters() if p is not model.cls.predictions.decoder.weight]
    for p in head: p.requires_grad_()
    return full_step(model, [p for p in model.parameters() if p.requires_grad], ids)


def ours(size, ids, pool, sparsity=.7):
    model = build(size).requires_grad_(False)
    settings = MaskSettings(sparsity=sparsity, pool=pool, steps=10_000, batch_size=len(ids))
    training = MaskTraining(model, ids, Words(), settings)
    for p in training.head.values(): p.requires_grad_()
    return training.advance


def median_ms(steps, rounds, clock):
    "Median milliseconds of each closure, measured in turn so that all see the same machine"
    times = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            begun = clock()
            step()
            if turn: times[name].append(1e3 * (clock() - begun))
    return {name: statistics.median(values) for name, values in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: processor time, for a machine that is busy with other things")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{'size':8} {'pool':19} {'dense ms':>9} {'usual ms':>9} {'ours ms':>8} {'ours/dense':>11} {'usual/ours':>11}")
    for size in SIZES:
        for pool in POOLS:
            ids = torch.randint(1000, 30000, (args.batch, args.tokens), generator=torch.Generator().manual_seed(0))
            steps = dict(dense=dense(size, ids), usual=usual(size, ids, pool), ours=ours(size, ids, pool))
            ms = median_ms(steps, args.rounds, CLOCKS[args.clock])
            print(f"{size:8} {pool:19} {ms['dense']:9.0f} {ms['usual']:9.0f} {ms['ours']:8.0f} {ms['ours']/ms['dense']:11.2f} {ms['usual']/ms['ours']:11.2f}", flush=True)
            del steps
            gc.collect()


if __name__ == "__main__": main()
