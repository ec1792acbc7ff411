"""A mask-training step beside a dense MLM step and the usual masked module, in one process.

dense MLM step   full-vocabulary logits, AdamW parameter by parameter
usual module     scores binarised into a clone by two indexed writes, W*M materialised by autograd (the whole embedding too), a kthvalue per
                 matrix at every step, full-vocabulary logits, AdamW parameter by parameter (the way of the released code, Liu et al. 2022)
this library     `MaskTraining.advance`: the threshold is refreshed at every step as well, exact at each (checked)
its products     the matrix products of that step alone, replayed on the same tensors: the floor, what no way of writing the rest can save
no dropout       this library's step without dropout, whose random numbers cost as much as everything else beside the products

Scores are spread as after a hundred steps: in the first steps most of them lie at the threshold, and finding it takes longer.
"""
import argparse
import gc
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
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


def build(size, dropout=.1):
    torch.manual_seed(0)
    return BertForMaskedLM(BertConfig(**SIZES[size], hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)).train()


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


PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention_for_cpu_backward"}


class Products(TorchDispatchMode):
    "Notes every matrix product that is computed while it is on"

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in PRODUCTS: self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def products(step):
    "A closure that computes the matrix products of a step and nothing else"
    with Products() as noted: step()
    calls = noted.calls

    @torch.no_grad()
    def floor():
        for func, args, kwargs in calls: func(*args, **kwargs)
    return floor


def ours(size, ids, pool, sparsity=.7, dropout=.1):
    model = build(size, dropout).requires_grad_(False)
    settings = MaskSettings(sparsity=sparsity, pool=pool, steps=10_000, batch_size=len(ids))
    training = MaskTraining(model, ids, Words(), settings)
    for p in training.head.values(): p.requires_grad_()
    with torch.no_grad():
        for score in training.scores.values.values(): score += 100 * settings.learning_rate * torch.randn_like(score)
    training.scores.refresh()
    return training


def exact(training, steps=3):
    "Train on, and refuse a step whose thresholds do not keep exactly the share that was asked"
    for _ in range(steps):
        training.scores.refresh(training.reach)   # what `advance` does first
        for name, kept in training.scores.mask().items():
            assert int(kept.sum()) == round(kept.numel() * (1 - training.settings.sparsity)), name
        training.advance()


def median_ms(steps, rounds, clock):
    "Median milliseconds of each closure, measured in turn so that all see the same machine"
    times = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            begun = clock()
            step()
            if turn: times[name].append(1e3 * (clock() - begun))
    return {name: statistics.median(values) for name, values in times.items()}


def timed_parser(about, rounds):
    "Options of a benchmark that takes times"
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: processor time, for a machine that is busy with other things")
    return parser


def main():
    parser = timed_parser(__doc__, rounds=7)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    columns = ["dense ms", "usual ms", "ours ms", "ours/dense", "usual/ours", "products ms", "ours/products", "no dropout"]
    print(f"{'size':8} {'pool':19}", *(f"{column:>13}" for column in columns))
    for size in SIZES:
        for pool in POOLS:
            ids = torch.randint(1000, 30000, (args.batch, args.tokens), generator=torch.Generator().manual_seed(0))
            training, still = ours(size, ids, pool), ours(size, ids, pool, dropout=0.)
            steps = dict(dense=dense(size, ids), usual=usual(size, ids, pool), ours=training.advance, floor=products(training.advance), still=still.advance)
            ms = median_ms(steps, args.rounds, CLOCKS[args.clock])
            ratios = [ms["ours"] / ms["dense"], ms["usual"] / ms["ours"], ms["ours"] / ms["floor"], ms["still"] / ms["floor"]]
            row = [*(f"{ms[name]:.0f}" for name in ("dense", "usual", "ours")), *(f"{ratio:.2f}" for ratio in ratios)]
            print(f"{size:8} {pool:19}", *(f"{value:>13}" for value in [*row[:5], f"{ms['floor']:.0f}", *row[5:]]), flush=True)
            exact(training)
            del steps, training, still
            gc.collect()


if __name__ == "__main__": main()
