"""Templates through papermill, with and without the command line."""
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import papermill
import pytest
import warm

from lottery_nb.files import BadInput, read_json
from lottery_nb.spec import SPECS, TicketSpec
from lottery_nb.store import notebook_times, open_run, read_result, run_folder
from lottery_nb.sweep import RunFailed, Worker, check_template, gpu_slots, run_notebook, state, sweep, template_path, visible_gpus


@pytest.fixture
def spec(tiny_model, tiny_data):
    return TicketSpec(task=str(tiny_data), model=str(tiny_model), method="omp", sparsity=.5, max_steps=2, max_length=16)


@pytest.mark.parametrize("name", SPECS)
def test_papermill_understands_every_template(name):
    "Typed parameter cells make its help page; an unreadable line would be left out"
    known = papermill.inspect_notebook(template_path(name))
    fields = dict(SPECS[name].__dataclass_fields__)
    assert list(known) == list(fields)
    assert all(known[f]["help"] for f in fields)


def test_papermill_alone_runs_the_ticket_template(spec, tmp_path):
    values = {name: value for name, value in vars(spec).items() if value is not None}
    words = [word for name, value in values.items() if value != "" for word in ("-r" if isinstance(value, str) else "-p", name, str(value))]
    done = subprocess.run([warm.command("papermill"), template_path("ticket"), tmp_path/"out.ipynb", *words], capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"LOTTERY_NB_RUNS": str(tmp_path/"runs")})
    assert done.returncode == 0, done.stderr[-3000:]
    assert read_result(run_folder(spec, tmp_path/"runs"))["method"] == "omp"


def test_the_executed_notebook_is_small_and_shows_its_figures(spec, tmp_path):
    with Worker(tmp_path) as worker: worker.execute(spec)
    path = run_folder(spec, tmp_path)/"run.ipynb"
    outputs = [o for c in read_json(path)["cells"] if c["cell_type"] == "code" for o in c["outputs"]]
    assert path.stat().st_size < 300_000
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 2
    assert not any(o["output_type"] == "error" for o in outputs)


def test_a_template_without_its_tag_is_refused_before_anything_runs(spec, tmp_path):
    notebook = read_json(template_path("ticket"))
    for cell in notebook["cells"]: cell["metadata"].pop("tags", None)
    (tmp_path/"untagged.ipynb").write_text(json.dumps(notebook))
    with Worker(tmp_path/"runs") as worker, pytest.raises(BadInput, match="exactly one cell tagged 'parameters', found 0"):
        worker.execute(spec, template=tmp_path/"untagged.ipynb")
    assert not (tmp_path/"runs").exists()


def test_a_template_that_is_no_notebook_is_named(tmp_path):
    (tmp_path/"x.ipynb").write_text("hello")
    with pytest.raises(BadInput, match="x.ipynb is not valid JSON"): check_template(tmp_path/"x.ipynb", TicketSpec())


def test_a_kernel_that_dies_is_a_failed_run_and_the_next_one_gets_a_new_kernel(spec, tmp_path, warm_python):
    notebook = read_json(template_path("ticket"))
    notebook["cells"][-1]["source"] = "import os; os._exit(1)"
    (tmp_path/"dies.ipynb").write_text(json.dumps(notebook))
    with Worker(tmp_path/"runs") as worker:
        with pytest.raises(RunFailed, match="the kernel died"): worker.execute(spec, template=tmp_path/"dies.ipynb")
        assert read_result(run_folder(spec, tmp_path/"runs")) is None
        assert worker.execute(spec)["method"] == "omp"


def test_a_failed_run_keeps_what_is_needed_to_see_why(spec, tmp_path, warm_python):
    notebook = read_json(template_path("ticket"))
    notebook["cells"][-1]["source"] = "print('so far'); 1/0"
    (tmp_path/"broken.ipynb").write_text(json.dumps(notebook))
    with Worker(tmp_path/"runs") as worker, pytest.raises(RunFailed, match="ZeroDivisionError.*run.ipynb.*log.txt"): worker.execute(spec, template=tmp_path/"broken.ipynb")
    folder = run_folder(spec, tmp_path/"runs")
    assert "so far" in (folder/"log.txt").read_text() and (folder/"run.ipynb").exists()
    assert state(spec, tmp_path/"runs") == "failed" and "ZeroDivisionError" in (folder/"failed.txt").read_text()
    with Worker(tmp_path/"runs") as worker: worker.execute(spec)
    assert state(spec, tmp_path/"runs") == "done" and not (folder/"failed.txt").exists()


def test_finished_runs_cost_no_kernel(spec, tmp_path):
    from lottery_nb.store import finish
    finish(open_run(spec, tmp_path), method="omp", score=.5)
    assert [result["score"] for _, result in sweep([spec], tmp_path)] == [.5]


def processes_mentioning(word):
    "Command lines of live processes that hold a word in their environment"
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if word.encode() in (path/"environ").read_bytes() and (path/"stat").read_text().rsplit(")")[1].split()[0] != "Z": found.append((path/"cmdline").read_bytes())
        except OSError: continue
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to see processes")
def test_a_killed_sweep_leaves_no_orphans(tiny_model, tiny_data, tmp_path):
    "Workers and kernels end when the sweep's process is killed hard: nobody goes on holding locks"
    (tmp_path/"grid.yaml").write_text(f"template: ticket\ntask: {tiny_data}\nmodel: {tiny_model}\nmethod: [omp, random]\nsparsity: 0.5\nmax_steps: 3000\nmax_length: 16\n")
    mark = f"LOTTERY_TEST_{tmp_path.name}"
    process = subprocess.Popen([Path(sys.executable).parent/"lottery-nb", "sweep", tmp_path/"grid.yaml", "--runs", tmp_path/"runs", "--workers", "2"], env=os.environ | {mark: "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while time.time() < deadline and not list((tmp_path/"runs"/"stages").glob("*.partial")): time.sleep(.1)
    process.kill()
    process.wait()
    while time.time() < deadline and processes_mentioning(mark): time.sleep(.2)
    assert processes_mentioning(mark) == []


def kill_workers():
    for process in multiprocessing.active_children(): process.kill()


def test_runs_that_lose_their_worker_process_go_on_in_a_new_one(spec, tmp_path, warm_python):
    ended = []
    for _, result in sweep([replace(spec, seed=seed) for seed in range(3)], tmp_path, workers=1):
        if not ended: kill_workers()
        ended.append(result)
    assert [result["method"] for result in ended] == ["omp"] * 3
    assert sorted(result["seed"] for result in ended) == [0, 1, 2]


def test_workers_that_are_always_killed_end_the_sweep_and_blame_no_run(spec, tmp_path):
    stop = threading.Event()
    def kill():
        while not stop.wait(.01): kill_workers()      # before a worker can have begun
    (killer := threading.Thread(target=kill)).start()
    try:
        with pytest.raises(RunFailed, match="before they began a run, 2 runs are left"): list(sweep([spec, replace(spec, seed=1)], tmp_path, workers=1))
    finally:
        stop.set()
        killer.join()


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to see processes")
def test_every_kernel_of_a_sweep_sees_its_own_gpu(spec, tmp_path, monkeypatch, warm_python):
    mark, seen = f"LOTTERY_TEST_{tmp_path.name}", set()
    monkeypatch.setenv(mark, "1")
    specs = [replace(spec, seed=seed) for seed in range(4)]
    for _, result in sweep(specs, tmp_path, workers=2, devices=gpu_slots("1,0", 1, ["5", "7"])):
        assert result["method"] == "omp"
        for path in Path("/proc").glob("[0-9]*"):
            try: environment, command = dict(pair.split("=", 1) for pair in (path/"environ").read_text().split("\0") if "=" in pair), (path/"cmdline").read_text()
            except (OSError, UnicodeDecodeError): continue
            if mark in environment and "ipykernel" in command: seen.add(environment["CUDA_VISIBLE_DEVICES"])
    assert seen == {"5", "7"}


def test_gpus_are_counted_among_those_that_are_visible(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-5f")
    assert visible_gpus() == ["3", "GPU-5f"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible_gpus() == ["0", "1"]


SILENT = "import time\nget_ipython().kernel.iopub_thread.schedule(lambda: time.sleep(6))"   # what a cell has said arrives six seconds late


def test_a_busy_machine_is_not_taken_for_a_dead_kernel(spec, tmp_path, warm_python):
    "nbclient alone gives up when a cell has ended and its output is more than four seconds late"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("spec = None", metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(SILENT)])
    nbformat.write(notebook, tmp_path/"silent.ipynb")
    (folder := tmp_path/"run").mkdir()
    with Worker(tmp_path) as worker: run_notebook(tmp_path/"silent.ipynb", folder, {}, worker.ready(), False, False)
    assert notebook_times(folder)["end_time"]
