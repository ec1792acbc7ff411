"What the micro world's pre-training is worth: the full model against the same network from scratch, and with 90 % of its encoder pruned at random"
import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import pandas as pd
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from lottery_nb.baseline import materials, theta0
from lottery_nb.masks import Mask
from lottery_nb.micro import random_model
from lottery_nb.names import GLUE_TASKS
from lottery_nb.scores import random
from lottery_nb.select import topk_mask
from lottery_nb.spec import RunSpec
from lottery_nb.training import evaluate, finetune
from lottery_nb.weights import prunable


def from_scratch(model: PreTrainedModel) -> PreTrainedModel:
    "Random weights in place of the pre-trained ones; the head stays"
    model.base_model.load_state_dict(random_model().base_model.state_dict(), strict=False)
    return model


def score(spec: RunSpec, model: PreTrainedModel, mask: Mask | None = None) -> float:
    "Fine-tune and judge"
    task, data, tokenizer = materials(spec)
    with tempfile.TemporaryDirectory() as folder: finetune(model, task, data, tokenizer, spec, Path(folder)/"checkpoints", mask=mask)
    return evaluate(model, task, data, tokenizer, spec)[task.metric]


def row(task: str, seed: int) -> dict:
    "The three scores of a task; scratch learns at twice the rate, which suits it better"
    spec = RunSpec(task=task, seed=seed)
    pruned = theta0(spec)
    found = dict(task=task, seed=seed, full=score(spec, theta0(spec)), scratch=score(replace(spec, learning_rate=2 * spec.learning_rate), from_scratch(theta0(spec))))
    return found | {"random 90 %": score(spec, pruned, topk_mask(random(prunable(pruned), seed), .9))}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", nargs="+", default=[*GLUE_TASKS, "squad"])
    parser.add_argument("--seed", nargs="+", type=int, default=[0])
    given = parser.parse_args()
    disable_progress_bar()
    rows = []
    for seed in given.seed:
        for task in given.task:
            rows.append(row(task, seed))
            print(" ".join(f"{name} {value:.3f}" if isinstance(value, float) else f"{value}" for name, value in rows[-1].items()), flush=True)
    table = pd.DataFrame(rows).groupby("task", sort=False).mean().drop(columns="seed")
    table.loc["average"] = table.mean()
    print((100 * table).round(1).to_string())
    print(f"pre-training is worth {100 * (table['full'] - table['scratch'])['average']:.1f} points")


if __name__ == "__main__": main()
