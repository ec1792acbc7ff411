"""A Python that begins with the heavy imports done, for tests that do not test a cold start: one server imports them once, and each process is a fork of it.

`command("python")`, `command("lottery-nb")` and so on are files to execute: each starts in hundredths of a second, and is for its parent (arguments, environment, current folder, files,
signals, umask, exit code) what the command itself is. Not theirs: a terminal, and what a library reads from the environment when it is imported."""
import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys
from contextlib import suppress
from functools import lru_cache

HEAVY = ("matplotlib.pyplot", "seaborn", "sklearn.metrics", "lottery_nb.cli", "lottery_nb.findings", "lottery_nb.plan", "lottery_nb.running", "lottery_nb.sweep",
         "IPython", "ipykernel.kernelapp", "nbdev.test", "papermill")   # what makes a kernel comes last
NAMES = ("python", "lottery-nb", "papermill")
MOST, ABOVE = 200, 600   # file descriptors that are handed on; a number above them all
HANDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
STAND_IN = """#!{python} -IS
import os, sys
sys.path.insert(0, {here!r})
from warm import client
os._exit(client({address!r}, {script!r} + sys.argv[1:]))
"""


def opened(number: int) -> bool:
    "Whether it is the number of an open file"
    try: return bool(os.fstat(number))
    except OSError: return False


def client(address: str, words: list[str]) -> int:
    "What the stand-in does: ask for a process like itself, hand signals on, end as that process ends"
    numbers, mask, parent = [number for number in map(int, os.listdir("/proc/self/fd")) if opened(number)], os.umask(0), os.getppid()
    os.umask(mask)
    ends = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ends.connect(address)
    blocked, ignored = map(int, signal.pthread_sigmask(signal.SIG_SETMASK, [])), [int(one) for one in HANDED if signal.getsignal(one) is signal.SIG_IGN]
    request = dict(words=words, numbers=numbers, environment=dict(os.environ), folder=os.getcwd(), mask=mask, blocked=list(blocked), ignored=ignored)
    memory = os.memfd_create("request")
    os.write(memory, json.dumps(request).encode())
    for one in HANDED: signal.signal(one, lambda number, _: ends.send(b"%d" % number))
    socket.send_fds(ends, [b"?"], [memory, *numbers])
    for number in numbers: os.close(number)   # whoever reads them waits for the process alone
    while not select.select([ends], [], [], 1)[0]:
        if os.getppid() != parent: return 1   # it matters to nobody any more: the process ends with this one
    code = int(ends.recv(64) or b"1")
    if code < 0: die_of(-code)
    return code


def die_of(number: int):
    "End by a signal"
    if number != signal.SIGKILL: signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


class Server:
    "Forks a process for each client, and tells the client how it ended; a client that has gone takes its process along"
    def __init__(self, address: str):
        self.door, self.jobs, self.address = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET), {}, address
        self.door.bind(address), self.door.listen(64)

    def serve(self):
        "Until standard input ends"
        while True:
            handles = {job[1]: one for one, job in self.jobs.items()}
            ready = select.select([0, self.door, *self.jobs, *handles], [], [])[0]
            if 0 in ready: return
            if self.door in ready: self.begin(self.door.accept()[0])
            for one in ready:
                if one in self.jobs: self.pass_on(one)
            for handle in ready:
                if handle in handles: self.end(handles[handle])

    def begin(self, one: socket.socket):
        "A client's process"
        _, given, _, _ = socket.recv_fds(one, 1, MOST)
        if not given: return one.close()
        process = os.fork()
        if not process: become(given)
        for number in given: os.close(number)
        self.jobs[one] = process, os.pidfd_open(process)
        asks = struct.unpack("iii", one.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        with open(f"{self.address}.{asks}", "w") as file: file.write(str(process))
        return None

    def pass_on(self, one: socket.socket):
        "A signal; or the client has been killed"
        try: said = one.recv(64)
        except OSError: said = b""
        with suppress(ProcessLookupError): os.kill(self.jobs[one][0], int(said or signal.SIGKILL))
        if not said: self.end(one)

    def end(self, one: socket.socket):
        "Say the exit code"
        if one not in self.jobs: return
        process, handle = self.jobs.pop(one)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        with suppress(OSError): one.send(b"%d" % code)
        one.close(), os.close(handle)


def become(given: list[int]):
    "In the fork: be the process that was asked for, and end like it"
    high = [fcntl.fcntl(number, fcntl.F_DUPFD, ABOVE) for number in given]
    os.closerange(0, ABOVE)
    os.lseek(high[0], 0, os.SEEK_SET)
    with os.fdopen(high[0], "rb") as file: request = json.loads(file.read())
    for number, target in zip(high[1:], request["numbers"]): os.dup2(number, target), os.close(number)
    os.setsid(), os.umask(request["mask"]), os.chdir(request["folder"])
    os.environ.clear(), os.environ.update(request["environment"], JPY_PARENT_PID=str(os.getppid()))
    sys.path[:0] = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part and part not in sys.path]
    for one in request["ignored"]: signal.signal(one, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked"])
    os._exit(ended(lambda: python(request["words"])))


def ended(run) -> int:
    "Exit code of what is run, as Python gives it, once its threads and exit functions have ended"
    import atexit
    import threading
    import traceback
    code = 0
    try: run()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if end.code is not None and not isinstance(end.code, int): print(end.code, file=sys.stderr)
    except KeyboardInterrupt: code = -signal.SIGINT
    except BaseException: code = traceback.print_exc() or 1
    with suppress(BaseException): threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError): stream.flush()
    if code < 0: die_of(-code)
    return code & 255


def python(words: list[str]):
    "What Python does with its words: options, then -m and a module, -c and code, or a script"
    import runpy
    import types
    here = not os.environ.get("PYTHONSAFEPATH")
    while words[0].startswith("-") and words[0] not in ("-c", "-m"): here, words = here and words[0] not in ("-P", "-I"), words[1:]
    kind, sys.argv = words[0], words[1:] if words[0] in ("-c", "-m") else words
    if here: sys.path.insert(0, {"-c": "", "-m": os.getcwd()}.get(kind) if kind in ("-c", "-m") else os.path.dirname(os.path.realpath(kind)))
    if sys.argv[0] == "ipykernel_launcher": be_a_notebook()
    if kind == "-m": return runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    if kind != "-c": return runpy.run_path(kind, run_name="__main__")
    code, sys.argv = sys.argv[0], ["-c", *sys.argv[1:]]
    sys.modules["__main__"] = module = types.ModuleType("__main__")
    return exec(compile(code, "<string>", "exec"), module.__dict__)


def be_a_notebook():
    "What libraries decide when they are imported in a kernel: figures are shown in it, and bars are widgets"
    from importlib import import_module
    backend, console = "matplotlib_inline.backend_inline", sys.modules["tqdm.auto"].tqdm
    sys.modules["matplotlib"].rcParams["backend"] = f"module://{backend}"
    for name in (backend, "tqdm.auto", "tqdm.autonotebook"): sys.modules.pop(name, None)
    widgets = import_module("tqdm.auto").tqdm
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get("tqdm") is console: module.tqdm = widgets


@lru_cache(None)
def folder() -> str:
    "Where the stand-ins of this process lie, with their server started; it ends with its standard input"
    import atexit
    import shutil
    import subprocess
    import tempfile
    made, bin = tempfile.mkdtemp(prefix="warm-", dir="/tmp"), os.path.dirname(sys.executable)
    for name in NAMES:
        script = [] if name == "python" else [os.path.join(bin, name)]
        with open(f"{made}/{name}", "w") as file: file.write(STAND_IN.format(python=sys.executable, here=os.path.dirname(__file__), address=f"{made}/door", script=script))
        os.chmod(f"{made}/{name}", 0o755)
    server = subprocess.Popen([sys.executable, __file__, made], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    atexit.register(lambda: (server.stdin.close(), server.wait(), shutil.rmtree(made, ignore_errors=True)))
    assert server.stdout.readline() == b"ready\n"
    return made


def command(name: str) -> str: return os.path.join(folder(), name)


def kill(process):
    "kill -9 of what a stand-in stands for, and of it"
    with open(os.path.join(folder(), f"door.{process.pid}")) as file: os.kill(int(file.read()), signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def main(made: str):
    "The server: import, then fork a process for each client"
    import gc
    import multiprocessing
    from importlib import import_module
    for name in HEAVY: import_module(name)
    del sys.path[0]
    sys.executable = f"{made}/python"
    multiprocessing.set_executable(sys.executable)
    gc.freeze()
    server = Server(f"{made}/door")
    print("ready", flush=True)
    server.serve()


if __name__ == "__main__": main(sys.argv[1])
