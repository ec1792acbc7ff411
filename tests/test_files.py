"""Nothing is lost: atomic writes, locks, stages that resume after kill -9."""
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lottery_nb.files import BadInput, atomic, locked, read_json, remove, seal, short_hash, stage, verify, write_json

json_values = st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3))


@given(value=json_values)
def test_json_round_trip_gives_equal_bytes(value, tmp_path_factory):
    folder = tmp_path_factory.mktemp("json")
    first = write_json(folder/"a.json", value).read_bytes()
    assert read_json(folder/"a.json") == value
    assert write_json(folder/"b.json", json.loads(first)).read_bytes() == first


@given(value=st.dictionaries(st.text(max_size=4), st.integers(), min_size=2, max_size=5))
def test_short_hash_ignores_the_order_of_keys(value):
    assert short_hash(value) == short_hash(dict(reversed(value.items())))


def test_short_hash_is_the_same_on_every_machine():
    assert short_hash({"task": "sst2", "sparsity": .7}, 10) == "179a34559e"


def test_atomic_leaves_nothing_behind_on_failure(tmp_path):
    with pytest.raises(OSError), atomic(tmp_path/"x") as temp:
        temp.write_text("half")
        raise OSError("disk full")
    assert list(tmp_path.iterdir()) == []


def test_remove_and_truncation_are_seen(tmp_path):
    (tmp_path/"s").mkdir()
    (tmp_path/"s"/"data").write_bytes(b"0123456789")
    seal(tmp_path/"s")
    (tmp_path/"s"/"data").write_bytes(b"01234")
    with pytest.raises(BadInput, match="data does not match its checksum"): verify(tmp_path/"s")
    remove(tmp_path/"s")
    assert not (tmp_path/"s").exists()


def test_a_second_user_of_a_stage_waits_and_does_not_make_it_again(tmp_path):
    made = []

    def make(partial):
        made.append(1)
        time.sleep(.3)
        (partial/"x").write_text("x")

    threads = [threading.Thread(target=stage, args=(tmp_path/"s", make)) for _ in range(3)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert made == [1]


def test_waiting_is_said(tmp_path, capsys):
    held = threading.Event(); done = threading.Event()

    def holder():
        with locked(tmp_path/"s"):
            held.set(); done.wait(5)

    thread = threading.Thread(target=holder); thread.start(); held.wait(5)
    threading.Timer(.2, done.set).start()
    with locked(tmp_path/"s"): pass
    thread.join()
    assert "waiting: another process is working on" in capsys.readouterr().out


COUNTER = """
    import sys, time
    from pathlib import Path
    from lottery_nb.files import stage, write_json, read_json

    def make(partial):
        state = partial/"state.json"
        n = read_json(state)["n"] if state.exists() else 0
        while n < 20:
            n += 1
            write_json(state, {"n": n, "sum": sum(range(n + 1))})
            print(n, flush=True)
            time.sleep(float(sys.argv[2]))

    stage(Path(sys.argv[1]), make)
"""


def test_a_stage_killed_hard_resumes_to_the_same_bytes(tmp_path):
    script = tmp_path/"count.py"
    script.write_text(textwrap.dedent(COUNTER))
    process = subprocess.Popen([sys.executable, script, tmp_path/"killed", "0.05"], stdout=subprocess.PIPE, text=True)
    for _ in range(7): process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL); process.wait()
    assert not (tmp_path/"killed").exists() and (tmp_path/"killed.partial").exists()
    done = subprocess.run([sys.executable, script, tmp_path/"killed", "0"], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[0]) >= 7
    subprocess.run([sys.executable, script, tmp_path/"whole", "0"], check=True, capture_output=True)
    assert {p.name: p.read_bytes() for p in (tmp_path/"killed").iterdir()} == {p.name: p.read_bytes() for p in (tmp_path/"whole").iterdir()}
