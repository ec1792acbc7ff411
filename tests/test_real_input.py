"""The main job on real English data and a real pre-trained model, shortened; skipped where they are absent."""
import json
import subprocess
from pathlib import Path

import pytest
import warm

from lottery_nb.baseline import theta0
from lottery_nb.cli import main
from lottery_nb.spec import RunSpec
from lottery_nb.tickets import Ticket

pytestmark = pytest.mark.usefixtures("warm_python")


@pytest.fixture
def model(assets):
    folder = assets/"models"/"wiki-bert-mini"
    if not folder.is_dir(): pytest.skip(f"no model at {folder}")
    return folder


def test_a_ticket_on_mrpc_from_the_command_line(model, assets, tmp_path):
    words = ["run", "ticket", "--model", model, "--data-dir", assets/"glue_data", "--task", "mrpc", "--method", "imp", "--sparsity", "0.2", "--round-steps", "4",
             "--max-steps", "8", "--max-eval", "100", "--max-length", "64", "--runs", tmp_path, "--json"]
    done = subprocess.run([warm.command("lottery-nb"), *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["metric"] == "accuracy" and 0 <= line["score"] <= 1 and abs(line["sparsity"] - .2) < 1e-6 and line["total"] == 3_145_728
    Ticket.load(Path(line["folder"])/"ticket").apply(theta0(RunSpec(task="mrpc", model=str(model), data_dir=str(assets/"glue_data"), max_train=8, max_eval=8))).release()


def test_pruning_moves_the_mlm_loss_of_wikipedia_text(model, assets, tmp_path):
    "Magnitude keeps what the model knows better than chance does, before any retraining to speak of"
    common = ["run", "ticket", "--model", str(model), "--text", str(assets/"wikipedia"), "--task", "mlm", "--max-train", "16", "--max-eval", "24", "--max-length", "64",
              "--max-steps", "1", "--learning-rate", "1e-6", "--sparsity", "0.5", "--runs", str(tmp_path)]
    for method in ("omp", "random"): assert main([*common, "--method", method]) == 0
    loss = {p.parent.name.split("-")[1]: json.loads(p.read_text())["scores"]["loss"] for p in tmp_path.glob("*/result.json")}
    full = json.loads(next(tmp_path.glob("*/result.json")).read_text())["full_scores"]["loss"]
    assert full < loss["omp"] < loss["random"]
