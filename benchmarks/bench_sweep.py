"""What a sweep costs beside its trainings, and what workers and sharing save: `python benchmarks/bench_sweep.py`."""
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from lottery_nb.grid import read_grid
from lottery_nb.micro import pretrained
from lottery_nb.plan import plan
from lottery_nb.spec import TicketSpec
from lottery_nb.store import finish, open_run, results, run_folder
from lottery_nb.sweep import seconds_taken, sweep

GRIDS = Path(__file__).parent.parent/"grids"


TINY = dict(num_hidden_layers=1, hidden_size=8, num_attention_heads=1, intermediate_size=16)


def tiny(folder: Path, size: dict = TINY, steps: int = 1) -> TicketSpec:
    "A small BERT on sixteen sentences, few steps"
    from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] the film meal was good fine bad poor".split()
    BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder/"bert")
    BertForMaskedLM(BertConfig(vocab_size=len(words), max_position_embeddings=16, **size)).save_pretrained(folder/"bert")
    rows = [f"the {thing} was {word},{label}" for thing, (word, label) in itertools.product(("film", "meal"), (("good", 1), ("fine", 1), ("bad", 0), ("poor", 0)))]
    (folder/"reviews.csv").write_text("\n".join(["text,label", *rows * 2]) + "\n")
    return TicketSpec(task=str(folder/"reviews.csv"), model=str(folder/"bert"), method="random", sparsity=.5, max_steps=steps, max_length=16, batch_size=4)


def seconds(action) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def run_all(specs, root, workers: int = 1, devices: list[str] | None = None) -> float:
    "Seconds of a sweep; every run must succeed"
    failed = []
    taken = seconds(lambda: failed.extend(result for _, result in sweep(specs, root, workers, devices=devices) if isinstance(result, Exception)))
    assert not failed, failed[0]
    return taken


def overhead(folder: Path, runs: int):
    "Trivial runs that share their full model, in one sweep; against a kernel of its own for each, as papermill alone does it"
    spec = tiny(folder)
    specs = [replace(spec, sparsity=.1 + .8 * i / runs) for i in range(runs)]
    taken = run_all(specs, folder/"trivial")
    inside = sum(sum(seconds_taken(run_folder(spec, folder/"trivial"))) for spec in specs)
    alone = run_all([replace(spec, seed=99)], folder/"alone")
    print(f"{runs} trivial runs, 1 worker     {taken:7.1f} s    {taken / runs:6.3f} s a run, of which {(taken - inside) / runs:.3f} s outside its notebook")
    print(f"one run with its own kernel     {alone:7.1f} s    {alone / (taken / runs):6.1f} times a run of the sweep")


def speed_up(folder: Path):
    "A few micro runs without common stages, on one worker and on two (one thread each)"
    pretrained()
    specs = [TicketSpec(task="sst2", method="omp", sparsity=.5, seed=seed, max_steps=60) for seed in range(4)]
    one, two = run_all(specs, folder/"one", 1), run_all(specs, folder/"two", 2)
    print(f"4 micro runs                    {one:7.1f} s    {one / two:6.2f} times as fast with 2 workers ({two:.1f} s)")


def table(folder: Path, runs: int):
    "The results table of many synthetic runs"
    for seed in range(runs):
        spec = TicketSpec(task="mrpc", method="omp", sparsity=.5, seed=seed)
        finish(open_run(spec, folder/"many"), metric="accuracy", score=.8, full_score=.82, sparsity=.5, kept=1, total=2, scores={"accuracy": .8, "f1": .85}, full_scores={"accuracy": .8, "f1": .85})
    specs = folder/"grid.yaml"
    specs.write_text(json.dumps(dict(task="mrpc", method="omp", sparsity=.5, seed=list(range(runs)))))
    rebuilt = seconds(lambda: results(folder/"many"))
    command = [Path(sys.executable).parent/"lottery-nb", "status", specs, "--runs", folder/"many"]
    status = seconds(lambda: subprocess.run(command, capture_output=True, check=True))
    print(f"results of {runs:,} runs           {rebuilt:7.2f} s    {1e3 * rebuilt / runs:6.2f} ms a run")
    print(f"lottery-nb status, the same     {status:7.2f} s")


def sharing():
    "Training steps that stages shared between runs save, pre-training of the micro model not counted"
    for path in sorted(GRIDS.glob("*.yaml")):
        found = plan(read_grid(path))
        alone, shared = found.steps_alone.sum(), found.steps_shared.sum()
        print(f"{path.name:<31} {100 * (1 - shared / alone):7.1f} %    of {alone:,} steps saved by sharing")


def main():
    "Print the table; on two cores, where the system can say so"
    if hasattr(os, "sched_setaffinity"): os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-2:])
    with tempfile.TemporaryDirectory() as folder:
        table(Path(folder), 2000)
        overhead(Path(folder), 200)
        speed_up(Path(folder))
    sharing()


if __name__ == "__main__": main()
