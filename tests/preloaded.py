"""Processes that begin with the heavy imports done: one server imports them once, and each job is a fork of it. Run as a script, it is the server."""
import json
import os
import subprocess
import sys
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from traceback import print_exc

HERE = Path(__file__).resolve().parent
HEAVY = ("nbdev.test", "seaborn", "sklearn.metrics", "lottery_nb.cli", "lottery_nb.findings", "lottery_nb.plan", "lottery_nb.running")


def work(job: dict):
    "In the fork: become the process that was asked for, and end like it"
    with open(job["said"], "w") as said:
        for stream in (1, 2): os.dup2(said.fileno(), stream)
    os.environ.update(job["environment"])
    os.chdir(HERE.parent)
    from nbdev.test import nbdev_test
    code = 1
    try:
        nbdev_test(path=job["notebook"], n_workers=0, do_print=True)
        code = 0
    except SystemExit as end: code = end.code or 0
    except BaseException: print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def serve():
    "Import, then fork a process for each line that comes"
    for name in HEAVY: import_module(name)
    for line in sys.stdin:
        job = os.fork()
        if not job: work(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(job, 0)[1]), flush=True)


@lru_cache(None)
def server() -> subprocess.Popen:
    "The server of this process; it ends with its standard input"
    return subprocess.Popen([sys.executable, __file__], cwd=HERE.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def notebook_test(path: Path, said: Path, environment: dict) -> tuple[int, str]:
    "nbdev's own runner on a notebook: its exit code and what it said"
    print(json.dumps(dict(notebook=str(path), said=str(said), environment=environment)), file=server().stdin, flush=True)
    return int(server().stdout.readline()), said.read_text()


if __name__ == "__main__": serve()
