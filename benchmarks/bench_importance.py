"""Importance of heads and MLPs: exact per example with frozen weights, beside the usual per-batch pattern, in one process.

The usual pattern (Michel et al. 2019, transformers' run_bertology, Prasanna et al. 2020): eager attention, one gate per head that scales the
attention probabilities, one backward pass of the batch loss that forms the gradient of every weight as well.
"""
import argparse
import statistics
import time

import torch
from transformers import BertConfig, BertForSequenceClassification
from transformers.models.bert import modeling_bert

from lottery_nb.gates import importance

SIZES = {
    "mini": dict(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024),
    "base": dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072),
}


def usual(model, batches):
    "The per-batch pattern: gates on the probabilities under eager attention, all weight gradients, |gradient| of the batch loss"
    config = model.config
    heads = torch.ones(config.num_hidden_layers, config.num_attention_heads, requires_grad=True, device=model.device)
    mlps = torch.ones(config.num_hidden_layers, requires_grad=True, device=model.device)
    original, total = modeling_bert.eager_attention_forward, 0

    def attention(module, query, key, value, mask, scaling, **options):
        probabilities = (query @ key.transpose(2, 3)) * scaling
        if mask is not None: probabilities = probabilities + mask
        probabilities = probabilities.softmax(-1) * heads[module.layer_idx].view(1, -1, 1, 1)
        return (probabilities @ value).transpose(1, 2).contiguous(), probabilities

    hooks = [layer.output.dense.register_forward_hook(lambda m, i, o, n=n: o * mlps[n]) for n, layer in enumerate(model.bert.encoder.layer)]
    modeling_bert.eager_attention_forward = attention
    try:
        for batch in batches:
            model(**batch).loss.backward()
            total = total + heads.grad.abs()
            heads.grad = mlps.grad = None
            model.zero_grad()
    finally:
        modeling_bert.eager_attention_forward = original
        for hook in hooks: hook.remove()
    return total / len(batches)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="mini")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**SIZES[args.size])).eval()
    batches = [dict(input_ids=torch.randint(5, 30000, (args.batch, args.tokens)), attention_mask=torch.ones(args.batch, args.tokens, dtype=torch.long), labels=torch.randint(0, 2, (args.batch,))) for _ in range(args.batches)]

    def ours(): model.set_attn_implementation("sdpa"); return importance(model, batches).heads
    def ours_per_batch(): model.set_attn_implementation("sdpa"); return importance(model, batches, mode="per_batch").heads
    def peers(): model.set_attn_implementation("eager"); return usual(model, batches).numpy()

    ways, times = {"usual: per batch, eager, all weight gradients": peers, "ours: exact per example": ours, "ours: per batch": ours_per_batch}, {}
    error = abs(ours_per_batch() - peers()).max()
    for _ in range(args.rounds):
        for name, way in ways.items():
            start = time.perf_counter(); way()
            times.setdefault(name, []).append(time.perf_counter() - start)
    print(f"BERT-{args.size}, {args.batches} batches of {args.batch} x {args.tokens} tokens, {args.threads} threads; median of {args.rounds} rounds in turn")
    print(f"{'way':<48} {'examples/s':>10} {'ratio':>6}")
    for name, seconds in times.items():
        print(f"{name:<48} {args.batch * args.batches / statistics.median(seconds):>10.1f} {statistics.median(times[next(iter(ways))]) / statistics.median(seconds):>6.2f}")
    print(f"largest difference between the two per-batch importances: {error:.1e}")


if __name__ == "__main__":
    main()
