"Attention maps and patterns against the usual way, in one process: `OMP_NUM_THREADS=2 python benchmarks/bench_attention.py`"
import math
import time

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import BertConfig, BertModel

from lottery_nb.attention import value_norms
from lottery_nb.patterns import PatternCNN


def timed(work, repeats=9):
    "Least seconds of several calls, after one to warm up: what the work takes when nothing else runs"
    work()
    best = math.inf
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def peak(work):
    "Most bytes of tensors alive at once during a call, beyond what was there (the sum of torch's allocations and frees)"
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record: work()
    changes = [event.nbytes() for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    return int(np.cumsum(changes).max())


def materialised(attention, x, alpha):
    "‖α_ij f(x_j)‖ as published: all heads × queries × keys × hidden vectors, then their norms"
    size = attention.self.attention_head_size
    values = attention.self.value(x).unflatten(-1, (-1, size)).transpose(1, 2)
    columns = attention.output.dense.weight.unflatten(1, (-1, size)).permute(1, 2, 0)
    return (alpha[..., None] * (values @ columns)[:, :, None]).norm(dim=-1)


def norm_maps(length=128):
    "One layer of BERT-base at 128 tokens: seconds and bytes of both ways"
    torch.manual_seed(0)
    attention = BertModel(BertConfig(num_hidden_layers=1)).eval().encoder.layer[0].attention
    x, alpha = torch.randn(1, length, 768), torch.rand(1, 12, length, length).softmax(-1)
    ways = {"materialised": lambda: materialised(attention, x, alpha), "factorised": lambda: alpha.mul_(value_norms(attention.self.value, attention.output.dense, 64, x)[:, :, None])}
    with torch.no_grad():
        written_out, large, slow = ways["materialised"](), peak(ways["materialised"]), timed(ways["materialised"])
        quick = timed(lambda: alpha * value_norms(attention.self.value, attention.output.dense, 64, x)[:, :, None])
        small = peak(ways["factorised"])             # in place, as `attention_maps` does it
        torch.testing.assert_close(alpha, written_out)
    return {"materialised": (slow, large), "factorised": (quick, small)}


def classify(maps=14_400, length=64):
    "Seconds, by the clock and of processor time, to classify 144 heads × 100 texts"
    rng = np.random.default_rng(0)
    some = [rng.dirichlet(np.ones(length), length).astype(np.float32) for _ in range(64)]
    start, busy = time.perf_counter(), time.process_time()
    PatternCNN().predict([some[i % 64] for i in range(maps)], progress=True)
    return time.perf_counter() - start, time.process_time() - busy


def main():
    print(f"{torch.get_num_threads()} threads")
    result = norm_maps()
    for name, (seconds, size) in result.items(): print(f"norm maps, {name:13} {1e3 * seconds:8.1f} ms {size / 1e6:9.2f} MB")
    (slow, large), (quick, small) = result.values()
    print(f"factorised: {slow / quick:.0f} times faster, 1/{large / small:.0f} of the memory")
    clock, busy = classify()
    print(f"14,400 maps of 64 tokens classified in {clock:.1f} s ({busy:.1f} s of processor time)")


if __name__ == "__main__": main()
