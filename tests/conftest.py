"""Shared by all tests: quiet libraries, one thread a worker, and where the real data lies."""
import csv
import gc
import multiprocessing.spawn
import os
import signal
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")   # pre-training the micro models takes two threads: on a busy machine they must not spin long
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import warm

# a suite started in the background ignores Ctrl-C, and all that it starts would too
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN: signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def assets() -> Path:
    "Folder of real data; a test that asks for it is skipped where it is absent"
    folder = Path(os.environ.get("LOTTERY_NB_ASSETS") or ROOT.parent/"shared"/"assets")
    if not folder.is_dir(): pytest.skip(f"no real data at {folder} (set LOTTERY_NB_ASSETS)")
    return folder


@pytest.fixture(scope="session")
def shared_runs(tmp_path_factory) -> Path:
    "A folder of runs for all that teaches, in all workers: stages are locked, so that each is made once"
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)/"shared_runs"


@pytest.fixture
def warm_python(monkeypatch):
    "Kernels and worker processes that this process starts begin with the heavy imports done"
    cold = multiprocessing.spawn.get_executable()
    monkeypatch.setattr(sys, "executable", warm.command("python"))
    multiprocessing.set_executable(sys.executable)
    yield
    multiprocessing.set_executable(cold)


@pytest.fixture
def grid_variables(monkeypatch):
    "What the grids of the repository take from the environment"
    for name in ("MODEL", "TEXT", "DATA"): monkeypatch.setenv(f"LOTTERY_NB_{name}", f"my/{name.lower()}")
    monkeypatch.setenv("LOTTERY_NB_TASK", "sst2")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    "A 2-layer random BERT with a ten-word vocabulary, as a folder"
    import torch
    from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast
    folder = tmp_path_factory.mktemp("tiny")/"bert"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "fine", "bad", "poor", "film", "meal", "the", "was", "a"]
    vocab = tmp_path_factory.mktemp("vocab")/"vocab.txt"
    vocab.write_text("\n".join(words) + "\n")
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(words), num_hidden_layers=2, hidden_size=16, num_attention_heads=2, intermediate_size=32, max_position_embeddings=128)
    BertForMaskedLM(config).save_pretrained(folder)
    BertTokenizerFast(str(vocab)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    "A CSV of the user's own: a text and a label that follows from one word"
    import itertools
    rows = [f"the {thing} was {word},{label}" for thing, (word, label) in itertools.product(("film", "meal"), (("good", "yes"), ("fine", "yes"), ("bad", "no"), ("poor", "no")))]
    path = tmp_path_factory.mktemp("data")/"reviews.csv"
    path.write_text("text,label\n" + "\n".join(rows*8) + "\n")
    return path


def pytest_collection_finish():
    "What is imported by now stays: every training begins with a garbage collection, which need not walk through it each time"
    gc.freeze()


def pytest_collection_modifyitems(items):
    "Several workers begin with the long tests: each cuts the list into equal parts, so the long ones are dealt to their heads"
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1: items[:] = dealt(items, workers)


def dealt(items: list, workers: int) -> list:
    "Tests and files that tests/seconds.csv knows, the longest first and to the worker with the least; then the others, until all have as many"
    with open(ROOT/"tests"/"seconds.csv", encoding="utf-8") as file: seconds = {row["test"]: float(row["seconds"]) for row in csv.DictReader(file)}
    known, others = {}, []
    for item in items:
        file = item.nodeid.split("::")[0].removeprefix("tests/")
        unit = next((name for name in (f"{file}::{item.name}", file) if name in seconds), None)
        if unit: known.setdefault(unit, []).append(item)
        else: others.append(item)
    shares, loads = [[] for _ in range(workers)], [0.]*workers
    for unit in sorted(known, key=seconds.get, reverse=True):
        least = loads.index(min(loads))
        shares[least] += known[unit]
        loads[least] += seconds[unit]
    sizes = [(len(items) + worker) // workers for worker in range(workers)]   # as pytest-xdist cuts
    for share, size in zip(shares, sizes): share += [others.pop(0) for _ in range(min(len(others), size - len(share)))]
    return sum(shares, []) + others
