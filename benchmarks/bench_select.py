"Global selection at 70 % over BERT-base's encoder and pooler, against torch.nn.utils.prune.global_unstructured: time and extra memory"
import argparse
import gc
import statistics
import time
from pathlib import Path
from typing import Callable

import torch
from torch import nn
from torch.nn.utils import prune
from transformers import BertConfig

from lottery_nb.scores import magnitude
from lottery_nb.select import kept_count, topk_mask

SPARSITY, REPEATS = .7, 5


def layers() -> dict[str, nn.Linear]:
    "The 73 matrices of BERT-base with normal entries, 85,524,480 in all"
    config = BertConfig()
    hidden, wide = config.hidden_size, config.intermediate_size
    shapes = [(hidden, hidden)] * 4 + [(hidden, wide), (wide, hidden)]
    return {f"layer {i}": nn.Linear(*shape, bias=False) for i, shape in enumerate(shapes * config.num_hidden_layers + [(hidden, hidden)])}


def status(field: str) -> int:
    "A memory field of this process in MB"
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) // 1024


def measured(work: Callable[[], object]) -> tuple[float, int, object]:
    "Seconds, MB above the start at the peak, and the result"
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")   # resets the peak (VmHWM)
    before, started = status("VmRSS"), time.perf_counter()
    result = work()
    return time.perf_counter() - started, status("VmHWM") - before, result


def usual(pool: dict[str, nn.Linear]):
    "What torch offers"
    prune.global_unstructured([(layer, "weight") for layer in pool.values()], prune.L1Unstructured, amount=SPARSITY)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    pool = layers()
    weights = {name: layer.weight for name, layer in pool.items()}
    runs = [measured(lambda: topk_mask(magnitude(weights), SPARSITY)) for _ in range(REPEATS)]
    seconds, memory, mask = statistics.median(run[0] for run in runs), max(run[1] for run in runs), runs[-1][2]
    their_seconds, their_memory, _ = measured(lambda: usual(pool))
    differing = {name: layer.weight_mask.bool() != mask[name] for name, layer in pool.items()}
    magnitudes = torch.cat([pool[name].weight_orig[places].abs() for name, places in differing.items()]).unique()
    print(f"{mask.total:,} scores, {threads} threads, sparsity {SPARSITY}")
    print(f"{'':42}{'seconds':>9}{'extra MB':>10}")
    print(f"{'torch.nn.utils.prune.global_unstructured':42}{their_seconds:9.2f}{their_memory:10}")
    print(f"{'topk_mask(magnitude(weights))':42}{seconds:9.2f}{memory:10}")
    print(f"{their_seconds / seconds:.1f} times faster; kept {mask.kept:,}, exact: {mask.kept == kept_count(mask.total, SPARSITY)}")
    print(f"entries chosen differently: {sum(int(places.count_nonzero()) for places in differing.values())}, of {len(magnitudes)} magnitude(s) (ties)")


if __name__ == "__main__": main()
