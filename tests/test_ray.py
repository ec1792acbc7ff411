"""The Ray back end, on a cluster of two nodes on this machine."""
import os
import socket
import threading
import time
from dataclasses import replace

import pytest

from lottery_nb.cli import main
from lottery_nb.files import BadInput
from lottery_nb.spec import TicketSpec
from lottery_nb.sweep import connect, progress, sweep_on_ray


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("ray", reason="Ray is not installed (pip install lottery-nb[ray])")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster
    cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=1, include_dashboard=False))
    yield cluster
    cluster.shutdown()


@pytest.fixture
def spec(tiny_model, tiny_data):
    return TicketSpec(task=str(tiny_data), model=str(tiny_model), method="omp", sparsity=.5, max_steps=2, max_length=16)


def test_a_node_that_dies_has_its_runs_done_by_the_other(cluster, spec, tmp_path):
    "Results, a failure and bad input come back as from this machine's own workers"
    second = cluster.add_node(num_cpus=1)
    long = [replace(spec, seed=seed, max_steps=400) for seed in (0, 1)]
    others = [replace(spec, seed=2), replace(spec, task=str(tmp_path/"none.csv")), replace(spec, method="imp", round_steps=2)]
    ended = sweep_on_ray([*long, *others], tmp_path/"runs", address=cluster.address)
    found = {}
    thread = threading.Thread(target=lambda: found.update(ended))
    thread.start()
    deadline = time.time() + 120
    while time.time() < deadline and progress(long, tmp_path/"runs")["total"]["running"] < 2: time.sleep(.05)
    assert progress(long, tmp_path/"runs")["total"]["running"] == 2, "both nodes work at once"
    cluster.remove_node(second, allow_graceful=False)
    thread.join(240)
    assert len(found) == 5
    assert [found[run]["method"] for run in (*long, others[0], others[2])] == ["omp", "omp", "omp", "imp"]
    assert isinstance(found[others[1]], BadInput) and "none.csv" in str(found[others[1]])
    assert progress([*long, *others], tmp_path/"runs")["total"] == dict(done=4, running=0, failed=0, waiting=1)


def test_the_command_line_speaks_to_the_cluster(cluster, spec, tmp_path, capsys, tiny_model, tiny_data):
    (tmp_path/"grid.yaml").write_text(f"task: {tiny_data}\nmodel: [{tiny_model}, {tmp_path}/none]\nmethod: omp\nsparsity: 0.5\nmax_steps: 2\nmax_length: 16\n")
    command = ["sweep", str(tmp_path/"grid.yaml"), "--runs", str(tmp_path/"runs"), "--backend", "ray", "--ray-address", cluster.address]
    assert main(command) == 1
    assert "1 of 2 runs failed" in capsys.readouterr().err and len(list((tmp_path/"runs").glob("*/result.json"))) == 1


def test_an_address_that_does_not_answer_is_bad_input_at_once():
    pytest.importorskip("ray", reason="Ray is not installed (pip install lottery-nb[ray])")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    for wrong in (address, "no-such-host.invalid:6379", "127.0.0.1:port"):
        with pytest.raises(BadInput, match="no Ray cluster answers at"): connect(wrong)


@pytest.mark.parametrize("words, message", [(["--backend", "slurm"], "backend must be one of local, ray"), (["--backend", "ray", "--workers", "2"], "not --workers or --gpus"),
                                            (["--backend", "ray", "--cpus-per-run", "0"], "cpus above 0"), (["--ray-address", "auto"], "need --backend ray"), (["--gpus-per-run", "1"], "need --backend ray")])
def test_bad_requests(words, message, tmp_path, capsys):
    (tmp_path/"grid.yaml").write_text("template: ticket\n")
    assert main(["sweep", str(tmp_path/"grid.yaml"), "--runs", str(tmp_path/"runs"), *words]) == 2
    assert message in capsys.readouterr().err and not (tmp_path/"runs").exists()
