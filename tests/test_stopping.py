"""Ctrl-C, kills, other people's environments and permissions: a run ends cleanly or goes on, and it is its own command's Python that runs."""
import json
import os
import pty
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import warm

from lottery_nb.cli import main
from lottery_nb.files import read_json
from lottery_nb.spec import TicketSpec
from lottery_nb.store import finish, finished, open_run, results, run_folder
from lottery_nb.sweep import RunFailed, Worker, state, sweep, template_path

COMMAND = Path(sys.executable).parent/"lottery-nb"
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals, terminals and modes of POSIX")


@pytest.fixture
def spec(tiny_model, tiny_data):
    return TicketSpec(task=str(tiny_data), model=str(tiny_model), method="omp", sparsity=.5, max_steps=2, max_length=16)


@pytest.fixture
def words(spec, tmp_path):
    "A run that takes seconds"
    return ["run", "ticket", "--task", spec.task, "--model", spec.model, "--method", "omp", "--sparsity", "0.5", "--max-steps", "2", "--max-length", "16", "--runs", str(tmp_path/"runs")]


def lottery(*words, command=None, **settings):
    "A command that begins warm, or the one that a user types, from a cold start"
    return subprocess.run([command or warm.command("lottery-nb"), *map(str, words)], capture_output=True, text=True, **settings)


def in_terminal(words, until, **variables):
    "Run a command in a terminal of its own and press Ctrl-C once `until` holds: exit code, seconds from then on, what was said"
    pid, terminal = pty.fork()
    if pid == 0: os.execvpe(words[0], words, os.environ | variables)
    said, pressed, deadline = b"", None, time.time() + 150
    while time.time() < deadline:
        if pressed is None and until():
            os.write(terminal, b"\x03")
            pressed = time.time()
        if not select.select([terminal], [], [], .1)[0]: continue
        try: part = os.read(terminal, 4096)
        except OSError: break
        if not part: break
        said += part
    if pressed is None: os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert pressed, said.decode()
    return os.waitstatus_to_exitcode(status), time.time() - pressed, said.decode()


def alive(mark):
    "Processes that hold a word in their environment"
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark.encode() in (path/"environ").read_bytes() and (path/"stat").read_text().rsplit(")")[1].split()[0] != "Z": found.append(path.name)
    return found


def left(folder): return [p for p in folder.rglob("*") if p.suffix in (".tmp", ".trash") or p.name.startswith((".tmp", "lottery-nb-"))]


@pytest.mark.parametrize("workers", [1, 2, None], ids=["one worker", "two workers", "run"])
def test_ctrl_c_in_a_terminal_ends_everything_at_once(workers, spec, words, tmp_path):
    "At most the running cells end, within 15 seconds: one sentence, exit code 130, no orphans, nothing left lying about; then the same command goes on"
    (tmp_path/"tmp").mkdir()
    (tmp_path/"grid.yaml").write_text(f"task: {spec.task}\nmodel: {spec.model}\nmethod: [omp, random]\nsparsity: 0.5\nseed: [0, 1, 2]\nmax_steps: 100000\nmax_length: 16\n")
    command = ["sweep", str(tmp_path/"grid.yaml"), "--runs", str(tmp_path/"runs"), "--workers", str(workers)] if workers else [*words, "--max-steps", "100000"]
    mark, begun = f"LOTTERY_TEST_{tmp_path.name}", lambda: len(list((tmp_path/"runs").glob("*/run.ipynb"))) == (workers or 1) and list((tmp_path/"runs"/"stages").glob("*.partial"))
    code, seconds, said = in_terminal([str(COMMAND), *command], begun, **{mark: "1", "TMPDIR": str(tmp_path/"tmp")})
    assert code == 130 and seconds < 15
    assert "Traceback" not in said and said.count("lottery-nb: ") == 1 and said.count("interrupted; finished stages and runs are kept") == 1
    assert alive(mark) == [] and left(tmp_path) == [] and list((tmp_path/"tmp").glob("*")) == []
    assert len(list((tmp_path/"runs").glob("*/run.ipynb"))) == (workers or 1) and not list((tmp_path/"runs").glob("*/failed.txt"))


def test_a_kernel_that_does_not_listen_is_killed(spec, tmp_path, warm_python):
    notebook = read_json(template_path("ticket"))
    notebook["cells"][-1]["source"] = f"import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); open({str(tmp_path/'here')!r}, 'w'); time.sleep(600)"
    (tmp_path/"deaf.ipynb").write_text(json.dumps(notebook))

    def press():
        while not (tmp_path/"here").exists(): time.sleep(.1)
        os.kill(os.getpid(), signal.SIGINT)

    (presser := threading.Thread(target=press)).start()
    with pytest.raises(KeyboardInterrupt), Worker(tmp_path/"runs") as worker: worker.execute(spec, template=tmp_path/"deaf.ipynb")
    presser.join()
    assert state(spec, tmp_path/"runs") == "waiting" and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_two_sweeps_share_a_folder(spec, tmp_path):
    "The second takes runs that are free and ends with the results of all"
    (tmp_path/"grid.yaml").write_text(f"task: {spec.task}\nmodel: {spec.model}\nmethod: omp\nsparsity: 0.5\nseed: [0, 1, 2, 3]\nmax_steps: 300\nmax_length: 16\n")
    command = [warm.command("lottery-nb"), "sweep", tmp_path/"grid.yaml", "--runs", tmp_path/"runs"]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while not list((tmp_path/"runs").glob("*/run.ipynb")): time.sleep(.05)
    second = subprocess.run(command, capture_output=True, text=True)
    said, _ = first.communicate()
    assert (first.returncode, second.returncode) == (0, 0), second.stderr
    assert "[4/4, 0 failed" in said and "[4/4, 0 failed" in second.stdout
    own = list((tmp_path/"runs").glob("*/log.txt"))
    assert len(own) == 4 and len(results(tmp_path/"runs")) == 4


def test_runs_whose_workers_never_begin_are_not_to_blame(spec, tmp_path, monkeypatch):
    monkeypatch.setattr("lottery_nb.sweep.begin_work", lambda *_: None)   # what cannot be sent to a process ends the pool

    def killed(specs, *_):
        from lottery_nb.sweep import Lost
        yield from ((one, Lost(False)) for one in specs)

    monkeypatch.setattr("lottery_nb.sweep.in_processes", killed)
    with pytest.raises(RunFailed, match="before they began a run, 2 runs are left.*No run is to blame"): list(sweep([spec, replace(spec, seed=1)], tmp_path))


def test_only_the_run_that_kills_its_process_is_given_up(spec, tmp_path, monkeypatch):
    "Lost with the others at first, it is tried alone"
    from lottery_nb.sweep import Lost
    rounds = []

    def one_kills(specs, *_):
        rounds.append([one.seed for one in specs])
        fatal = any(one.seed == 1 for one in specs)
        yield from ((one, Lost(one.seed < 2) if fatal else {"seed": one.seed}) for one in specs)

    monkeypatch.setattr("lottery_nb.sweep.in_processes", one_kills)
    ended = {one.seed: result for one, result in sweep([replace(spec, seed=seed) for seed in range(4)], tmp_path, workers=2)}
    assert isinstance(ended[1], RunFailed) and "killed twice" in str(ended[1]) and [ended[seed] for seed in (0, 2, 3)] == [{"seed": 0}, {"seed": 2}, {"seed": 3}]
    assert rounds == [[0, 1, 2, 3], [0], [1], [2, 3]]


def test_a_run_is_executed_by_the_python_of_its_command(spec, words, tmp_path):
    "Not by a kernel called python3 from elsewhere, nor with modules that lie about in the current folder, nor start-up files; and in a long TMPDIR"
    elsewhere = tmp_path/"jupyter"/"kernels"/"python3"
    elsewhere.mkdir(parents=True)
    (elsewhere/"kernel.json").write_text(json.dumps({"argv": ["/bin/false"], "display_name": "Python 3", "language": "python"}))
    for name in ("datasets", "socket", "transformers", "multiprocessing", "lottery_nb", "startup"): (tmp_path/f"{name}.py").write_text("raise SystemExit('not this one')\n")
    startup = tmp_path/"ipython"/"profile_default"/"startup"
    startup.mkdir(parents=True)
    (startup/"00.py").write_text("import os; os._exit(3)\n")
    shutil.copy(spec.task, tmp_path/"near.csv")
    long = tmp_path/("t" * 100)
    long.mkdir()
    env = os.environ | {"JUPYTER_PATH": str(tmp_path/"jupyter"), "IPYTHONDIR": str(tmp_path/"ipython"), "PYTHONSTARTUP": str(tmp_path/"startup.py"), "TMPDIR": str(long)}
    done = lottery(*words, "--task", "near.csv", command=COMMAND, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    (tmp_path/"grid.yaml").write_text(f"task: near.csv\nmodel: {spec.model}\nmethod: random\nsparsity: 0.5\nmax_steps: 2\nmax_length: 16\n")
    swept = lottery("sweep", "grid.yaml", "--runs", tmp_path/"runs", command=COMMAND, cwd=tmp_path, env=env)
    assert swept.returncode == 0, swept.stderr
    assert list(long.iterdir()) == [] and "Traceback" not in done.stderr + swept.stderr


def test_the_module_path_is_handed_on(tmp_path, monkeypatch):
    from lottery_nb.sweep import import_path
    (tmp_path/"datasets.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    assert str(tmp_path) not in import_path()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert str(tmp_path) not in import_path()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert import_path()[0] == str(tmp_path)
    (tmp_path/"lottery_nb").mkdir()
    (tmp_path/"lottery_nb"/"__init__.py").write_text("")
    assert import_path()[0] != str(tmp_path), "another copy of the library does not come first"


def test_sockets_go_where_their_name_fits_or_the_kernel_is_spoken_to_by_tcp(tmp_path, monkeypatch):
    from lottery_nb import sweep as module
    monkeypatch.setattr(module, "LONGEST_SOCKET", 10)
    folder, sockets = module.kernel_folder()
    assert sockets == {} and folder.is_dir()
    folder.rmdir()


def test_papermill_alone_names_a_parameter_that_does_not_exist(spec, tmp_path):
    run = lambda command, *words: subprocess.run([command, template_path("ticket"), "out.ipynb", "-p", "sparsity", "0.5", "-r", "task", spec.task, "-r", "model", spec.model, "-r", "method", "omp",
                                         "-p", "max_steps", "2", *words], capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"LOTTERY_NB_RUNS": str(tmp_path/"runs")})
    wrong = run(warm.command("papermill"), "-p", "sparsty", "0.5")
    assert wrong.returncode == 1 and "got 'sparsty' (did you mean 'sparsity'?)" in wrong.stderr and not (tmp_path/"runs").exists()
    assert run(Path(sys.executable).parent/"papermill").returncode == 0 and len(list((tmp_path/"runs").glob("*/result.json"))) == 1


def test_a_run_is_done_when_its_notebook_is(words, spec, tmp_path):
    "Killed between result and notebook: not done, not counted, executed again"
    assert lottery(*words).returncode == 0
    folder = run_folder(spec, tmp_path/"runs")
    whole = (folder/"result.json").read_bytes()
    notebook = read_json(folder/"run.ipynb")
    (folder/"run.ipynb").write_text(json.dumps(notebook | {"metadata": notebook["metadata"] | {"papermill": notebook["metadata"]["papermill"] | {"end_time": None}}}))
    (folder/".spec.json.4194305.tmp").write_text("half")
    (folder/"ticket"/".tmpa1b2C3").write_text("half")
    shutil.copytree(folder, folder.with_name(f".{folder.name}.4194305.trash"))
    assert "no finished runs" in lottery("results", "--runs", tmp_path/"runs").stdout
    again = lottery(*words)
    assert again.returncode == 0 and "already done" not in again.stdout and (folder/"result.json").read_bytes() == whole
    assert finished(folder) and left(tmp_path/"runs") == [] and "already done" in lottery(*words).stdout


def test_already_done_is_said_without_torch(spec, tmp_path):
    finish(open_run(spec, tmp_path), metric="accuracy", score=.5, sparsity=.5)
    words = ["run", "ticket", "--runs", str(tmp_path), *(word for name in ("task", "model", "method", "sparsity", "max_steps", "max_length") for word in (f"--{name.replace('_', '-')}", str(getattr(spec, name))))]
    code = f"import sys; from lottery_nb.cli import main; print(main({words!r}), [m for m in ('torch', 'transformers', 'pandas', 'papermill', 'jupyter_client') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("already done") and done.stdout.splitlines()[-1] == "0 []"


def test_one_damaged_result_hides_no_other_and_stops_no_sweep(spec, tmp_path):
    specs = [replace(spec, seed=seed) for seed in range(3)]
    for one in specs: finish(open_run(one, tmp_path), metric="accuracy", score=.5, sparsity=.5)
    (run_folder(specs[1], tmp_path)/"result.json").write_text('{"score": NaN}')
    shown = lottery("results", "--runs", tmp_path, "--format", "json")
    assert shown.returncode == 1 and len(json.loads(shown.stdout)) == 2 and f"{specs[1].id}/result.json" in shown.stderr and "Traceback" not in shown.stderr
    ended = [result for _, result in sweep(specs, tmp_path)]
    assert [type(result).__name__ for result in ended] == ["dict", "BadInput", "dict"] and state(specs[1], tmp_path) == "failed"


@pytest.mark.parametrize("mask", [0o002, 0o022, 0o077], ids=oct)
def test_files_obey_the_umask(mask, words, tmp_path):
    done = lottery(*words, umask=mask)
    assert done.returncode == 0, done.stderr
    modes = {path.relative_to(tmp_path).as_posix(): stat.S_IMODE(path.stat().st_mode) for path in (tmp_path/"runs").rglob("*")}
    assert {name: oct(mode) for name, mode in modes.items() if mode != (0o777 if (tmp_path/name).is_dir() else 0o666) & ~mask} == {}


@pytest.fixture
def open_folder():
    "A folder that everybody may read, down from the root"
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def as_another_user(words, out):
    "Run a command in this process's copy, which has imported everything, as a user who owns nothing: exit code, standard output and error"
    if (pid := os.fork()) == 0:
        with open(out/"said", "w") as said, open(out/"complained", "w") as complained:
            os.setgroups([]), os.setgid(65534), os.setuid(65534)
            sys.stdout, sys.stderr = said, complained
            try: code = main(words)
            except BaseException as error: code = print("Traceback", repr(error), file=complained) or 99
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), (out/"said").read_text(), (out/"complained").read_text()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can become another user")
def test_another_user_reads_what_is_finished(words, spec, open_folder, tmp_path, capfd, warm_python):
    "A runs folder of somebody else's, without the right to write"
    import filelock   # noqa: F401 (the other user may not be able to import)
    shutil.copytree(spec.model, open_folder/"model")
    shutil.copy(spec.task, open_folder/"reviews.csv")
    near = [*words, "--task", str(open_folder/"reviews.csv"), "--model", str(open_folder/"model"), "--runs", str(open_folder/"runs")]
    assert main(near) == 0
    (open_folder/"grid.yaml").write_text(f"task: {open_folder/'reviews.csv'}\nmodel: {open_folder/'model'}\nmethod: [omp, random]\nsparsity: 0.5\nmax_steps: 2\nmax_length: 16\n")
    folder = next((open_folder/"runs").glob("reviews-*"))
    reading = {"run": near, "verify": ["ticket", "verify", str(folder)], "results": ["results", "--runs", str(open_folder/"runs"), "--format", "json"],
               "status": ["status", str(open_folder/"grid.yaml"), "--runs", str(open_folder/"runs"), "--json"]}
    for command in reading.values(): assert main(command) == 0
    found = {name: as_another_user(command, tmp_path) for name, command in reading.items()}
    assert {name: (code, complained) for name, (code, _, complained) in found.items()} == dict.fromkeys(reading, (0, ""))
    assert found["run"][1].startswith("already done") and json.loads(found["results"][1])[0]["id"] == folder.name
    assert json.loads(found["status"][1])["total"] == dict(done=1, running=0, failed=0, waiting=1)
    code, _, complained = as_another_user([*near, "--seed", "1"], tmp_path)
    assert code == 2 and "Permission denied" in complained and "Traceback" not in complained


def test_a_full_disk_names_the_file_and_what_may_go(words, spec, tmp_path, warm_python):
    "As the operating system says it, in a cell of the run"
    notebook = read_json(template_path("ticket"))
    notebook["cells"][-1]["source"] = "import errno; from lottery_nb.files import atomic\nwith atomic(run/'more.json') as temp: raise OSError(errno.ENOSPC, 'No space left on device')"
    (tmp_path/"full.ipynb").write_text(json.dumps(notebook))
    with Worker(tmp_path/"runs") as worker, pytest.raises(RunFailed, match="more.json could not be written, the disk or quota is full: free space there"): worker.execute(spec, template=tmp_path/"full.ipynb")
    assert left(tmp_path/"runs") == [] and state(spec, tmp_path/"runs") == "failed"
