"""A fine-tuning step with batches by length beside one with shuffled batches, per example, in one process: `python benchmarks/bench_batches.py`.

Of an epoch over the whole training set of SST-2 and of CoLA in either order, some steps are trained, spread evenly over the lengths of the epoch's batches.
`LOTTERY_NB_DATA` names a folder of GLUE; without it, the tasks and the model are those of the micro world. The last column is the tokens of an epoch with their padding, as a ratio too.
"""
import os
import tempfile
import time
from functools import partial

import numpy as np
import torch

from bench_tamt import CLOCKS, timed_parser
from lottery_nb.models import load_model, load_tokenizer
from lottery_nb.spec import RunSpec
from lottery_nb.tasks import load_data, task_of
from lottery_nb.training import Finetuner, by_length, encoded, finetune


class Given(Finetuner):
    "A `Finetuner` that takes the examples it is given, in their order"

    def __init__(self, *args, rows: list[int], **options):
        super().__init__(*args, **options)
        self.rows = rows

    def _get_train_sampler(self, train_dataset=None): return self.rows


def batches(order: list[int], lengths: np.ndarray, size: int) -> list[list[int]]:
    "The full batches of an epoch, shortest first"
    return sorted((order[i:i + size] for i in range(0, len(order) - size + 1, size)), key=lambda rows: lengths[rows].max())


def spread(some: list, count: int) -> list:
    "So many of a list, evenly spaced"
    return [some[int((i + .5) * len(some) / count)] for i in range(count)]


def seconds(spec: RunSpec, chosen: list[list[int]], clock) -> float:
    "Of a training on these batches"
    task, data, tokenizer = task_of(spec), load_data(spec), load_tokenizer(spec.model)
    net, rows = load_model(spec.model, task, spec.seed, spec.dropout), [row for batch in chosen for row in batch]
    encoded(spec, task, data, tokenizer, "train")
    with tempfile.TemporaryDirectory() as folder:
        begun = clock()
        finetune(net, task, data, tokenizer, spec, folder, length=len(chosen), kind=partial(Given, rows=rows))
        return clock() - begun


def main():
    "A line a task: the best of the rounds of each, measured in turn"
    parser = timed_parser(__doc__, rounds=3)
    parser.add_argument("--model", default="minilm" if os.environ.get("LOTTERY_NB_DATA") else "micro")
    parser.add_argument("--steps", type=int, default=16)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{'task':5} {'shuffled ms':>12} {'by length ms':>13} {'time':>6} {'tokens':>7}   (ms per example, then by length over shuffled)")
    for name in ("sst2", "cola"):
        spec = RunSpec(task=name, model=args.model, batch_size=32)
        task, data = task_of(spec), load_data(spec)
        lengths = np.array([len(ids) for ids in encoded(spec, task, data, load_tokenizer(spec.model), "train")["input_ids"]])
        orders = {"shuffled": np.random.default_rng(0).permutation(len(lengths)).tolist(), "length": by_length(lengths.tolist(), spec.batch_size, 0, 0)}
        epochs = {kind: batches(order, lengths, spec.batch_size) for kind, order in orders.items()}
        tokens = {kind: sum(lengths[rows].max() for rows in epoch) for kind, epoch in epochs.items()}
        chosen = {kind: spread(epoch, args.steps) for kind, epoch in epochs.items()}
        seconds(spec, chosen["length"][:1], time.perf_counter)   # the first step of a process pays for warming up
        taken = {kind: [] for kind in chosen}
        for _ in range(args.rounds):
            for kind, rows in chosen.items(): taken[kind].append(seconds(spec, rows, CLOCKS[args.clock]))
        ms = {kind: 1e3 * min(values) / (args.steps * spec.batch_size) for kind, values in taken.items()}
        ratio = ms["length"] / ms["shuffled"]
        print(f"{name:5} {ms['shuffled']:12.2f} {ms['length']:13.2f} {ratio:6.2f} {tokens['length'] / tokens['shuffled']:7.2f}", flush=True)


if __name__ == "__main__": main()
