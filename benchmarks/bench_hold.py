"A held fine-tuning step against the dense step with the same optimizer, and against torch.nn.utils.prune"
import argparse
import copy
import statistics
import time
from typing import Callable

import torch
from torch import nn
from torch.nn.utils import prune
from transformers import BertConfig, BertForSequenceClassification

from lottery_nb.masks import Mask, hold
from lottery_nb.scores import magnitude
from lottery_nb.select import topk_mask
from lottery_nb.weights import prunable

SIZES = {"L4 H256": dict(num_hidden_layers=4, hidden_size=256, num_attention_heads=4, intermediate_size=1024), "L12 H768": {}}
BATCH, TOKENS = 16, 64


def stepper(model: nn.Module) -> Callable[[], None]:
    "One step as the Trainer takes it (fused AdamW, clipping), on the same batch each time"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=.01, fused=True)
    draw = torch.Generator().manual_seed(0)
    batch = dict(input_ids=torch.randint(1000, (BATCH, TOKENS), generator=draw), labels=torch.randint(2, (BATCH,), generator=draw))
    batch = {name: values.to(model.device) for name, values in batch.items()}

    def step():
        model(**batch).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.)
        optimizer.step()
        optimizer.zero_grad()
    return step


def variants(size: dict, device: str = "cpu") -> dict[str, Callable[[], None]]:
    "A step of the dense model, of a second dense one (how far equal work differs here), of the held and of the re-parametrised one"
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=1000, **size)).to(device).train()
    dense, again, held, hooked = (copy.deepcopy(model) for _ in range(4))   # four copies: memory laid out alike
    mask: Mask = topk_mask(magnitude(prunable(held)), .7)
    hold(held, mask)
    for name, kept in mask.items(): prune.custom_from_mask(hooked.get_submodule(name.removesuffix(".weight")), "weight", kept.to(device))
    return {"dense": stepper(dense), "dense again": stepper(again), "hold": stepper(held), "torch.nn.utils.prune": stepper(hooked)}


def timed(step: Callable[[], None]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40, help="steps of each variant, taken in turns")
    parser.add_argument("--size", choices=SIZES, action="append", help="only this size")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for size in given.size or SIZES:
        steps = variants(SIZES[size])
        rounds = [{name: timed(step) for name, step in steps.items()} for _ in range(given.rounds + 2)][2:]
        print(f"{size}, batch {BATCH} x {TOKENS}, {given.threads} threads, median of {given.rounds} steps taken in turns")
        for name in steps:
            ratio = statistics.median(turn[name] / turn["dense"] for turn in rounds)
            best = min(turn[name] for turn in rounds) / min(turn["dense"] for turn in rounds)
            print(f"  {name:22}{statistics.median(turn[name] for turn in rounds) * 1000:9.1f} ms   x dense: {ratio:.3f} (fastest steps: {best:.3f})")


if __name__ == "__main__": main()
