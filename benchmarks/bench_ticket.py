"""A BERT-base ticket on disk against the usual files, and how fast the command line answers: `python benchmarks/bench_ticket.py`."""
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from lottery_nb.masks import Mask
from lottery_nb.tickets import Ticket
from lottery_nb.weights import prunable

COMMAND = Path(sys.executable).parent/"lottery-nb"


def megabytes(path: Path) -> float: return sum(p.stat().st_size for p in ([path] if path.is_file() else path.iterdir()))/1e6


def seconds(action, times: int = 3) -> float:
    "Shortest of a few repetitions"
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - start)
    return best


def main():
    "Print sizes, load times and their ratios"
    with torch.device("meta"): shapes = {n: p.shape for n, p in prunable(BertModel(BertConfig()), "encoder+pooler").items()}
    generator = torch.Generator().manual_seed(0)
    mask = Mask({name: torch.rand(shape, generator=generator) > .7 for name, shape in shapes.items()})
    folder = Path(tempfile.mkdtemp())
    save_file({name: member.float() for name, member in mask.items()}, folder/"float.safetensors")
    save_file(dict(mask), folder/"bool.safetensors")
    Ticket(mask, {"method": "random"}).save(folder/"ticket")
    sizes = {"float32 mask (usual)": megabytes(folder/"float.safetensors"), "bool mask": megabytes(folder/"bool.safetensors"), "ticket folder": megabytes(folder/"ticket")}
    for name, size in sizes.items(): print(f"{name:<24} {size:8.2f} MB   {sizes['float32 mask (usual)']/size:6.1f} times smaller than usual")
    usual = seconds(lambda: {name: tensor != 0 for name, tensor in load_file(folder/"float.safetensors").items()})
    ours = seconds(lambda: Ticket.load(folder/"ticket"))
    print(f"load and unpack, checked  {ours:6.3f} s    {usual/ours:6.2f} times the speed of loading the float mask ({usual:.3f} s)")
    print(f"lottery-nb --help         {seconds(lambda: subprocess.run([COMMAND, '--help'], capture_output=True, check=True)):6.3f} s")
    print(f"python -c 'import torch'  {seconds(lambda: subprocess.run([sys.executable, '-c', 'import torch'], check=True)):6.3f} s")


if __name__ == "__main__": main()
