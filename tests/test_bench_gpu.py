"""The measurements that are made on a GPU: each runs here on the CPU, at a tiny size, through the same code."""
import math
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent/"benchmarks"
sys.path.insert(0, str(BENCHMARKS))
bench_gpu = import_module("bench_gpu")

SIZE = dict(num_hidden_layers=2, hidden_size=16, num_attention_heads=2, intermediate_size=32)
FEW = {"selection": {}, "held": {}, "mask-training": dict(batch=2, tokens=16), "importance": dict(batch=4, tokens=8), "maps": dict(batch=2, tokens=8), "sweep": dict(steps=1)}


@pytest.mark.parametrize("name", bench_gpu.MEASUREMENTS)
def test_every_measurement_runs_on_the_cpu(name):
    rows = bench_gpu.MEASUREMENTS[name]("cpu", SIZE, 1, **FEW[name])
    assert rows and all(what and unit and math.isfinite(value) and value > 0 and ratio > 0 for what, value, unit, ratio in rows)


def test_without_a_gpu_it_says_so_and_ends():
    import torch
    if torch.cuda.is_available(): pytest.skip("there is a GPU")
    ended = subprocess.run([sys.executable, BENCHMARKS/"bench_gpu.py"], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "There is no GPU here, so nothing is measured.\n")


def test_the_measurements_are_those_that_the_script_names():
    assert len(bench_gpu.MEASUREMENTS) == sum(line[:1].isalpha() for line in bench_gpu.__doc__.splitlines()[2:])
