"""Smaller models at equal measured time: the search beside dropped last layers, random gates, magnitudes and s-pruning, `python benchmarks/bench_shrink.py`.

Bare, on the micro model, in minutes. On real English, with LOTTERY_NB_DATA naming GLUE's folder, in hours:
    python benchmarks/bench_shrink.py --out studies/shrink --model minilm --tasks sst2 --speedups 2 3 1.5 --steps 400 --retrain 150 --threads 1 --learning-rate 5e-5
(shrink_minilm.csv beside this file, as far as it came; MRPC and STS-B with 1e-4. As OUT/bench_shrink.csv it is gone on from.)

The lottery question on top (--methods "pre-trained" "random weights" "ticket inside"): the search's structure, retrained from weights before fine-tuning.
Every structure is timed in turns with the full model; baselines are the nearest that their rule gives to the time asked. Each is scored, then retrained for
as many steps by the same teacher. OUT/bench_shrink.csv grows row by row; a second call goes on where the first ended."""
import argparse
import copy
import tempfile
import time
from pathlib import Path
from typing import Any, Iterator

import pandas as pd
import torch

from lottery_nb.baseline import beside_guess, target_spec, theta0
from lottery_nb.files import atomic, short_hash
from lottery_nb.gates import importance, open_gates, smaller
from lottery_nb.masks import Mask
from lottery_nb.methods import calibration_batches
from lottery_nb.models import start_weights
from lottery_nb.scores import magnitude
from lottery_nb.select import topk_mask
from lottery_nb.shrinking import Ground, Wish, cut_down, felt_once, ground_of, random_like, retrained_small, scale_of, search_structure
from lottery_nb.sizes import Felt, Structure, whole
from lottery_nb.spec import RunSpec
from lottery_nb.subnetworks import prune_gates
from lottery_nb.weights import architecture, encoder_layers, prunable

METHODS = ("search", "last layers", "random", "magnitude", "s-pruning")
STARTS = ("pre-trained", "random weights", "ticket inside")   # the lottery question: what the search's structure is retrained from
INSIDE = .5   # share of the smaller model's matrices that its ticket prunes
EXAMPLES = 256   # training examples for s-pruning's importance, at every step of its loop


def magnitudes(model: Any) -> Felt:
    "Norms of what each head and each neuron holds, in the place of gradients: the search then keeps the largest"
    size, rows = model.config.hidden_size // model.config.num_attention_heads, architecture(model).families
    weight = lambda layer, name: layer.get_submodule(rows[name]).weight.detach()
    heads, neurons = [], []
    for layer in encoder_layers(model):
        inside = sum(weight(layer, name).square().sum(1) for name in ("query", "key", "value"))
        heads.append((inside + weight(layer, "attention_output").square().sum(0)).view(-1, size).sum(1).sqrt())
        neurons.append((weight(layer, "intermediate").square().sum(1) + weight(layer, "output").square().sum(0)).sqrt())
    return Felt(torch.stack(heads)[None], torch.stack(neurons)[None])


def without_last(model: Any, layers: int) -> Any:
    "The first layers alone"
    short = copy.deepcopy(model)
    stack = encoder_layers(short)
    del stack[layers:]
    short.config.num_hidden_layers = layers
    return short


def s_pruned(ground: Ground, share: float) -> Structure:
    "The loop of Prasanna et al. 2020 until the table says that the time asked is reached; the last step is the first that is fast enough"
    costs, batches = scale_of(ground).costs, list(calibration_batches(target_spec(ground.spec), EXAMPLES))
    inner = whole(ground.model).neurons
    at = lambda gates: Structure(gates.heads, inner & gates.mlps[:, None])
    full = costs.total(ground.start)
    found = prune_gates(open_gates(ground.model), lambda gates: importance(ground.model, batches, gates), lambda gates: costs.total(at(gates)) / full, share)
    tried = [found.kept, *(step.kept for step in found.steps)]
    return min(map(at, tried), key=lambda one: abs(costs.total(one) / full - share))


def candidates(ground: Ground, share: float, methods: list[str]) -> Iterator[tuple[str, Any, Any, float]]:
    "Method, what is kept, the smaller model before retraining, seconds of the search"
    begun, model, cut = time.perf_counter(), ground.model, lambda kept: smaller(ground.model, kept.gates, neurons=kept.neurons).eval()
    gradients, scale = felt_once(ground.spec, model, ground.root), scale_of(ground)
    found = search_structure(gradients, scale.costs, ground.start, share, scale.measure).structure
    for method in methods:
        if method == "search": yield method, found, cut_down(model, found, ground.spec), time.perf_counter() - begun
        if method == "random":
            chance = random_like(found, ground.start, ground.spec.seed)
            yield method, chance, cut(chance), 0.
        if method == "magnitude":
            largest = search_structure(magnitudes(model), scale.costs, ground.start, share, scale.measure).structure
            yield method, largest, cut(largest), 0.
        if method == "s-pruning":
            kept = s_pruned(ground, share)
            yield method, kept, cut(kept), 0.
        if method in STARTS: yield method, found, started(ground, found, method), 0.
        if method == "last layers":
            shares = ground.shares({str(count): without_last(model, count) for count in range(1, model.config.num_hidden_layers)})
            count = int(min(shares, key=lambda name: abs(shares[name] - share)))
            yield method, count, without_last(model, count), 0.


def started(ground: Ground, found: Structure, start: str) -> Any:
    "The search's structure with pre-trained weights, or with random ones, and a fresh head"
    weights = start_weights(theta0(target_spec(ground.spec)), "reinit" if start == "random weights" else "pretrained", ground.spec.seed)
    return smaller(weights, found.gates, neurons=found.neurons).eval()


def ticket_inside(cut: Any, start: str) -> Mask | None:
    "The largest weights of what is left, by which single weights are pruned inside a smaller model"
    return topk_mask(magnitude(prunable(cut)), INSIDE) if start == "ticket inside" else None


def kept_said(kept: Any) -> tuple[str, str]:
    "Heads and neurons by layer, or the number of layers"
    return (" ".join(map(str, kept.heads.sum(1))), " ".join(map(str, kept.neurons.sum(1)))) if isinstance(kept, Structure) else (f"{kept} layers", "")


def row_of(ground: Ground, speedup: float, method: str, kept: Any, cut: Any, seconds: float, steps: int) -> dict:
    "What one structure gives before and after retraining"
    shares = {batch: ground.shares({"cut": cut}, batch)["cut"] for batch in (1, ground.wish.batch)}
    units = [part.tolist() for part in vars(kept).values()] if isinstance(kept, Structure) else kept
    pruned, key = ground.score(cut), {"structure": short_hash({"kept": units, "method": method})}
    retrained = retrained_small(cut, ground.model, ground.spec, steps, key, ground.root, ticket_inside(cut, method))
    heads, neurons = kept_said(kept)
    return {"method": method, "speedup_asked": speedup, "speedup_batch_1": 1/shares[1], f"speedup_batch_{ground.wish.batch}": 1/shares[ground.wish.batch],
            "score_pruned": pruned, "score_retrained": ground.score(retrained), "search_seconds": seconds, "heads": heads, "neurons": neurons,
            "parameters": sum(p.numel() for p in cut.parameters())}


def kept_rows(path: Path) -> pd.DataFrame:
    "What an earlier call has measured"
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["task", "speedup_asked", "method", "seed"])


def one_task(task: str, given: argparse.Namespace, path: Path):
    "All methods at all speeds, row by row"
    settings = {"learning_rate": given.learning_rate, "max_length": given.max_length, "warmup": .1, "max_steps": given.steps, "batch_size": 32}
    spec = RunSpec(task=task, model=given.model, seed=given.seed, **settings)
    for speedup in given.speedups:
        done = kept_rows(path)
        mine = done[(done.task == task) & (done.speedup_asked == speedup) & (done.seed == given.seed)].method.tolist()
        left = [method for method in given.methods if method not in mine]
        if not left: continue
        ground = ground_of(spec, Wish(speedup=speedup, batch=given.batch), given.out/"runs")
        full = ground.score(ground.model)
        for method, *rest in candidates(ground, 1/speedup, left):
            row = row_of(ground, speedup, method, *rest, steps=given.retrain)
            about = {"task": task, "seed": given.seed, "model": given.model, "threads": torch.get_num_threads(), "tokens": ground.tokens, "steps": given.steps,
                     "learning_rate": spec.learning_rate, "retrain_steps": given.retrain, "score_full": full} | beside_guess(spec, full)
            table = pd.DataFrame([*kept_rows(path).to_dict("records"), about | row])
            with atomic(path) as temp: table.to_csv(temp, index=False)
            print(f"{task} {speedup:g} times, {method}: {row['score_pruned']:.4f}, retrained {row['score_retrained']:.4f} (full {full:.4f}), "
                  f"{row[f'speedup_batch_{given.batch}']:.2f} times at batch {given.batch}", flush=True)


def gain_kept(table: pd.DataFrame) -> pd.DataFrame:
    "Share of the full model's gain over a guess that is kept after retraining: mean over tasks and seeds"
    gain = (table.score_retrained - table.majority) / (table.score_full - table.majority)
    return table.assign(gain=gain).pivot_table(index="method", columns="speedup_asked", values="gain").round(3)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of runs and table; none: a temporary one")
    parser.add_argument("--model", default="micro")
    parser.add_argument("--tasks", nargs="+", default=["sst2"])
    parser.add_argument("--speedups", nargs="+", type=float, default=[2.])
    parser.add_argument("--methods", nargs="+", choices=METHODS + STARTS, default=list(METHODS), help="the last three: other weights")
    parser.add_argument("--steps", type=int, default=150, help="of the full model's training")
    parser.add_argument("--retrain", type=int, default=100, help="steps for every smaller model")
    parser.add_argument("--learning-rate", type=float, help="none: the model's own")
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32, help="examples of a forward pass that is timed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.out = given.out or Path(tempfile.mkdtemp(prefix="bench_shrink_"))
    path = given.out/"bench_shrink.csv"
    given.out.mkdir(parents=True, exist_ok=True)
    for task in given.tasks: one_task(task, given, path)
    print(gain_kept(kept_rows(path)).to_string())


if __name__ == "__main__": main()
