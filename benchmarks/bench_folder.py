"""What `results` and `status` cost on a folder of 2,000 runs: `python benchmarks/bench_folder.py`."""
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lottery_nb.files import write_json
from lottery_nb.spec import TicketSpec
from lottery_nb.store import NOTEBOOK, finish, open_run

GRID = dict(task=["mrpc", "rte", "sst2", "cola", "qnli"], method=["imp", "omp", "random", "first-order"], sparsity=[i / 20 for i in range(9, 19)], seed=list(range(10)))
COMMANDS = (["results"], ["results", "--summary"], ["results", "--format", "csv"], ["status", "{grid}"])


def notebook(kilobytes: int) -> dict:
    "As papermill leaves it: figures in the outputs, its own notes at the end"
    output = {"output_type": "display_data", "metadata": {}, "data": {"image/png": "A" * 1000 * kilobytes}}
    cell = {"cell_type": "code", "id": "figure", "execution_count": 1, "metadata": {"papermill": {"duration": .1}}, "source": [], "outputs": [output]}
    notes = {"duration": 3.2, "start_time": "2026-01-01T00:00:00", "end_time": "2026-01-01T00:00:03", "exception": None, "parameters": {"task": "mrpc"}}
    return {"cells": [cell], "metadata": {"kernelspec": {"name": "python3"}, "papermill": notes}, "nbformat": 4, "nbformat_minor": 5}


def fill(runs: Path, specs: list[TicketSpec]):
    "Finished runs that nobody trained"
    for number, spec in enumerate(specs):
        score = .6 + number % 97 / 400
        folder = open_run(spec, runs)
        scores = {"accuracy": score, "f1": score}
        finish(folder, made_by="notebook", method=spec.method, task=spec.task, metric="accuracy", score=score, full_score=.8, sparsity=spec.sparsity, kept=1, total=2,
               majority=.5, learnt=True, scores=scores, full_scores=scores)
        write_json(folder/NOTEBOOK, notebook(100))


def measured(words: list[str]) -> tuple[float, float]:   # seconds, seconds of processor time
    "Run a command as a user does"
    before, begun = os.times(), time.perf_counter()
    subprocess.run([Path(sys.executable).parent/"lottery-nb", *words], capture_output=True, check=True)
    after = os.times()
    return time.perf_counter() - begun, sum(after[2:4]) - sum(before[2:4])


def main():
    "Print a line a command, the best of three"
    from lottery_nb.grid import expand
    with tempfile.TemporaryDirectory() as folder:
        runs, grid = Path(folder)/"runs", Path(folder)/"grid.yaml"
        grid.write_text(json.dumps(GRID))
        fill(runs, specs := expand(GRID))
        print(f"{len(specs):,} runs".ljust(28) + "seconds  processor seconds")
        for words in COMMANDS:
            best = min(measured([word.format(grid=grid) for word in words] + ["--runs", str(runs)]) for _ in range(3))
            print(f"{' '.join(words):<28}{best[0]:7.2f}  {best[1]:17.2f}")


if __name__ == "__main__": main()
