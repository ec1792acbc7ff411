"""Damaged and hostile files of our own kinds: every reader answers with a value that is whole or with one sentence, never otherwise."""
import json
import math
import random
import shutil
import time
from functools import partial

import pytest
import yaml

from lottery_nb.files import BadInput, first_damage, read_json, seal, verify, write_json
from lottery_nb.grid import read_grid
from lottery_nb.spec import SPECS, RunSpec, TicketSpec
from lottery_nb.store import finish, finished, open_run, read_result, read_spec, results, verify_run
from lottery_nb.sweep import check_template, progress, seconds_taken, state, template_path

HOSTILE = [None, True, -1, 0, 10**30, 1e300, -0.0, "", "nan", "../../etc/passwd", "/etc/passwd", "a\0b", "x" * 10_000, [], {}, [[]], {"": None}, [None] * 3, {"a": {"b": 1}}, "𝕏", "\u2028", "2026-01-01", "1e5"]
LITERALS = ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 5000, "[" * 5000, '{"a":' * 5000, r'"\ud800"', r'"\udc00x"', "0x10", "01", "'a'", "tru", "", "{", "/**/1", "\ufeff1", '"\t"', "1.", "﹢1"]


def places(value, path=()):
    "Every place of a JSON value"
    yield path
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(part, (*path, key))


def with_part(value, path, part):
    "A JSON value with one place changed"
    if not path: return part
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = with_part(value[path[0]], path[1:], part)
    return copy


def damaged(text, rng):
    "Text with one thing wrong with it: another value somewhere, a literal that is none, cut, doubled, or with other bytes"
    kind, value = rng.randrange(6), json.loads(text)
    place = rng.choice(list(places(value)))
    if kind == 0: return json.dumps(with_part(value, place, rng.choice(HOSTILE))).encode()
    if kind == 1: return json.dumps(with_part(value, place, "HERE")).replace('"HERE"', rng.choice(LITERALS)).encode()
    if kind == 2: return text.encode()[:rng.randrange(len(text))]
    if kind == 3: return text.encode() + rng.choice([b"}", b"\x00", text.encode(), b"\xff"])
    at = rng.randrange(len(text.encode()))
    if kind == 4: return text.encode()[:at] + rng.randbytes(rng.randrange(1, 4)) + text.encode()[at + 1:]
    if not (parent := place[:-1]) and not place: return b""
    whole = value
    for key in parent: whole = whole[key]
    return json.dumps(with_part(value, parent, {k: v for k, v in whole.items() if k != place[-1]} if isinstance(whole, dict) else whole[:-1])).encode()


def answer(reader, *values):
    "What a reader returns; None where it refuses with one readable sentence. Anything else it raises is a fault"
    begun = time.time()
    try: return reader(*values)
    except BadInput as error: assert 0 < len(str(error)) < 1500, str(error)[:200]
    finally: assert time.time() - begun < 10


def finite(value): return all(math.isfinite(x) for x in [value] if isinstance(x, float)) and all(finite(part) for part in (value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A finished run"
    root = tmp_path_factory.mktemp("runs")
    folder = open_run(TicketSpec(task="rte", method="omp", sparsity=.5), root)
    write_json(folder/"ticket"/"ticket.json", {"format": 1})
    finish(folder, metric="accuracy", score=.5, full_score=.6, sparsity=.5, kept=10, scores={"accuracy": .5}, full_scores={"accuracy": .6})
    cell = {"cell_type": "code", "source": "", "metadata": {}, "outputs": []}
    write_json(folder/"run.ipynb", {"cells": [cell], "metadata": {"papermill": {"end_time": "2026-01-01T00:00:00", "duration": 3.5, "exception": None}}, "nbformat": 4, "nbformat_minor": 5})
    return folder


@pytest.mark.parametrize("name, cases", [("result.json", 300), ("spec.json", 150), ("run.ipynb", 150)])
def test_runs(name, cases, run, tmp_path):
    "One file of a run is damaged: whatever reads runs says so or reads on, and the other run is always there"
    rng, spec = random.Random(name), read_spec(run)
    shutil.copytree(run, tmp_path/run.name)
    other = open_run(TicketSpec(task="mrpc", method="omp", sparsity=.5), tmp_path)
    finish(other, metric="accuracy", score=.5, full_score=.6, sparsity=.5)
    text, path, accepted = (run/name).read_text(), tmp_path/run.name/name, 0
    for _ in range(cases):
        path.write_bytes(damaged(text, rng))
        found, complaints = answer(read_result, path.parent), []
        assert found is None or (isinstance(found, dict) and finite(found))
        table = results(tmp_path, complaints.append)
        assert other.name in table.id.tolist() and all(str(path.parent) in said and len(said) < 1500 for said in complaints) and len(table) + len(complaints) <= 2
        assert finite(json.loads(table.to_json(orient="records")))
        for reader in (finished, verify_run, read_spec, seconds_taken): answer(reader, path.parent)
        answer(open_run, spec, tmp_path)
        assert state(spec, tmp_path) in ("done", "failed", "waiting") and progress([spec], tmp_path)["total"]["running"] == 0
        accepted += found is not None
    assert name != "result.json" or 0 < accepted < cases


def test_sealed_folders(tmp_path):
    "A changed list of checksums is accepted where what it says is true, and only there"
    rng = random.Random(0)
    for name in ("a.bin", "b.bin", "c/d.bin"):
        (tmp_path/name).parent.mkdir(exist_ok=True)
        (tmp_path/name).write_bytes(rng.randbytes(50))
    text = seal(tmp_path).read_text()
    for _ in range(150):
        (tmp_path/"checksums.json").write_bytes(damaged(text, rng))
        if answer(verify, tmp_path): assert first_damage(tmp_path, read_json(tmp_path/"checksums.json")) is None


def test_json(tmp_path):
    "What is read can be written, and says the same"
    rng = random.Random(1)
    text = json.dumps({"a": [1, 2.5, None, True, "text"], "b": {"c": {"d": [0.1, -3]}}, "ü": "é\n"})
    for _ in range(250):
        (tmp_path/"a.json").write_bytes(damaged(text, rng))
        value = answer(read_json, tmp_path/"a.json")
        if value is not None: assert finite(value) and read_json(write_json(tmp_path/"b.json", value)) == value


def test_grids(tmp_path):
    rng, path = random.Random(2), tmp_path/"grid.yaml"
    grid = {"grids": [{"template": "ticket", "task": ["rte", "mrpc"], "method": "omp", "sparsity": [.5, .7], "seed": [0, 1]}, {"template": "structured", "task": "sst2", "prune": "heads"}]}
    text, plain = json.dumps(grid), yaml.safe_dump(grid)
    tokens = [".inf", ".nan", "~", "*a", "&a [*a]", "!!set {a}", "!!python/name:os.system", "<<: *x", "? [a]", "- -", "|", ">", "%TAG", "0o9", "0x" + "f" * 300, "2026-13-45", "\t", "!!binary x", "[", "{", "!!omap", "1_000", "12:30:45", "@", "`"]
    for _ in range(250):
        at = rng.randrange(len(plain))
        if rng.random() < .5: path.write_bytes(damaged(text, rng))
        else: path.write_text(plain[:at] + rng.choice(tokens) + plain[at + rng.randrange(6):], encoding="utf-8")
        specs = answer(read_grid, path)
        assert specs is None or all(isinstance(spec, RunSpec) and spec.id for spec in specs)


def test_templates(tmp_path):
    rng, text = random.Random(3), json.dumps(json.loads(template_path("ticket").read_text()))
    for _ in range(60):
        (tmp_path/"t.ipynb").write_bytes(damaged(text, rng))
        answer(check_template, tmp_path/"t.ipynb", TicketSpec())


def test_values_of_specs():
    "Any value in any field: a spec, or one sentence"
    rng, values = random.Random(4), [*HOSTILE, float("nan"), float("inf"), -float("inf"), 10**400, 10**5000, "\ud800", 2**32, 1e-12, .5, 3, b"x", object(), (1,), {1}]
    for _ in range(600):
        kind = rng.choice(list(SPECS.values()))
        given = {name: rng.choice(values) for name in rng.sample(list(kind.__dataclass_fields__), rng.randrange(1, 4))}
        spec = answer(partial(kind, **given))
        assert spec is None or (spec.id and finite(vars(spec)))


@pytest.mark.parametrize("template", SPECS)
def test_names_too_long_for_any_file(template):
    "A text of any length in any field: a spec with an id, or one sentence"
    for name in SPECS[template].__dataclass_fields__:
        spec = answer(partial(SPECS[template], **{name: "x" * 5000}))
        assert spec is None or spec.id
