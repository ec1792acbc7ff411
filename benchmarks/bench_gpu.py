"""Everything that a GPU is for, as ratios in one process: `python benchmarks/bench_gpu.py`, under ten minutes; without a GPU it says so and ends.

selection        `topk_mask` over all scores of BERT-base, beside torch's `kthvalue` over one long tensor
held step        a fine-tuning step under a mask, beside the dense one
mask training    a step of `MaskTraining` (encoder and embeddings) in float32 and in bf16, beside a dense MLM step with fused AdamW of the same precision
importance       exact per example, beside the usual per-batch pattern
maps             norm-weighted attention maps, beside raw ones
sweep            four runs of one GPU with two at a time, beside one at a time
"""
import argparse
import math
import statistics
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Callable

import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel

import bench_hold
import bench_importance
from bench_sweep import run_all, tiny
from bench_tamt import Words
from lottery_nb.attention import attention_maps
from lottery_nb.gates import importance
from lottery_nb.scores import magnitude
from lottery_nb.select import kept_count, topk_mask
from lottery_nb.sweep import gpu_slots, visible_gpus
from lottery_nb.tamt import MaskSettings, MaskTraining
from lottery_nb.weights import prunable

BASE: dict = {}   # the sizes of BertConfig are BERT-base's
Row = tuple[str, float, str, float]   # what, its value, unit, ratio to what it is measured beside


def seconds(works: dict[str, Callable], device: str, rounds: int) -> dict[str, float]:
    "Median seconds of each, measured in turn after one round to warm up, the device's queue empty at both ends"
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    taken: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            wait(); begun = time.perf_counter()
            work()
            wait()
            if turn: taken[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in taken.items()}


def made(device: str, build: Callable[[], nn.Module]) -> nn.Module:
    "A model of random weights, drawn where it will be"
    with torch.device(device): return build()


def words(device: str, shape: tuple[int, int], vocabulary: int) -> torch.Tensor:
    "Token ids without special ones"
    return torch.randint(min(1000, vocabulary // 2), vocabulary, shape, generator=torch.Generator().manual_seed(0)).to(device)


def selection(device: str, size: dict, rounds: int) -> list[Row]:
    "All scores of the encoder and the pooler at 70 %; exact or refused"
    torch.manual_seed(0)
    scores = magnitude(prunable(made(device, lambda: BertModel(BertConfig(**size))), "encoder+pooler"))
    long = torch.cat([scores[name].flatten() for name in scores]).abs()
    keep = kept_count(len(long), .7)
    assert topk_mask(scores, .7).kept == keep
    ways = {"ours": lambda: topk_mask(scores, .7), "torch": lambda: long >= long.kthvalue(len(long) - keep + 1).values}
    ms = seconds(ways, device, rounds)
    return [(f"selection of {len(long):,} scores", 1e3 * ms["ours"], "ms", ms["ours"] / ms["torch"])]


def held_step(device: str, size: dict, rounds: int) -> list[Row]:
    "The Trainer's step, with a mask held and without"
    steps = bench_hold.variants(size, device)
    ms = seconds({name: steps[name] for name in ("dense", "hold")}, device, rounds)
    return [("held fine-tuning step", 1e3 * ms["hold"], "ms", ms["hold"] / ms["dense"])]


def dense_step(model: nn.Module, ids: torch.Tensor, half: bool = False) -> Callable[[], None]:
    "A dense MLM step, logits at every position, fused AdamW"
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, fused=True)
    labels = torch.where(torch.rand(ids.shape, device=ids.device) < .15, ids, -100)

    def step():
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=half): loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.)
        optimizer.step()
        optimizer.zero_grad()
    return step


def mask_training(device: str, size: dict, rounds: int, batch: int = 16, tokens: int = 128) -> list[Row]:
    "A step of mask training, its threshold exact at every step"
    config = BertConfig(**size)
    ids, rows = words("cpu", (batch, tokens), config.vocab_size), []
    for precision in ("float32", "bf16"):
        masked = made(device, lambda: BertForMaskedLM(config)).train().requires_grad_(False)
        training = MaskTraining(masked, ids, Words(), MaskSettings(pool="encoder+embeddings", steps=10_000, batch_size=batch, precision=precision))
        for p in training.head.values(): p.requires_grad_()
        dense = dense_step(made(device, lambda: BertForMaskedLM(config)).train(), ids.to(device), precision == "bf16")
        ms = seconds({"ours": training.advance, "dense": dense}, device, rounds)
        rows.append((f"mask-training step, {precision}", 1e3 * ms["ours"], "ms", ms["ours"] / ms["dense"]))
    return rows


def importances(device: str, size: dict, rounds: int, batch: int = 32, tokens: int = 128) -> list[Row]:
    "Importance of heads and MLPs, examples a second"
    model = made(device, lambda: BertForSequenceClassification(BertConfig(**size))).eval()
    ids = words(device, (batch, tokens), model.config.vocab_size)
    batches = [dict(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids[:, 0] % 2)]

    def ours(): model.set_attn_implementation("sdpa"); importance(model, batches)
    def usual(): model.set_attn_implementation("eager"); bench_importance.usual(model, batches)
    taken = seconds({"ours": ours, "usual": usual}, device, rounds)
    return [("importance", batch / taken["ours"], "examples/s", taken["usual"] / taken["ours"])]


def maps(device: str, size: dict, rounds: int, batch: int = 32, tokens: int = 128) -> list[Row]:
    "Attention maps, texts a second"
    model = made(device, lambda: BertModel(BertConfig(**size))).eval()
    ids = words(device, (batch, tokens), model.config.vocab_size)
    ways = {kind: partial(attention_maps, model, dict(input_ids=ids, attention_mask=torch.ones_like(ids)), kind) for kind in ("raw", "norm")}
    taken = seconds(ways, device, rounds)
    return [("norm-weighted maps", batch / taken["norm"], "texts/s", taken["raw"] / taken["norm"])]


def small_sweep(device: str, size: dict, rounds: int, steps: int = 100) -> list[Row]:
    "Runs of random tickets that share nothing, each with its own full model"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        specs = [replace(tiny(folder, size, steps), seed=seed) for seed in range(max(2, min(4, rounds)))]
        slots = gpu_slots("0", 2, visible_gpus()) if device == "cuda" else None
        one, two = run_all(specs, folder/"one", 1, slots and slots[:1]), run_all(specs, folder/"two", 2, slots)
    return [(f"sweep of {len(specs)} runs, two at a time", two, "s", two / one)]


MEASUREMENTS = {"selection": selection, "held": held_step, "mask-training": mask_training, "importance": importances, "maps": maps, "sweep": small_sweep}


def main():
    "Print a line a measurement"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=MEASUREMENTS, action="append", help="only this one")
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    if not torch.cuda.is_available(): return print("There is no GPU here, so nothing is measured.")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for name in args.only or MEASUREMENTS:
        for what, value, unit, ratio in MEASUREMENTS[name]("cuda", BASE, args.rounds):
            assert math.isfinite(value) and math.isfinite(ratio)
            print(f"{what:38}{value:12.2f} {unit:11} ratio {ratio:6.2f}", flush=True)


if __name__ == "__main__": main()
