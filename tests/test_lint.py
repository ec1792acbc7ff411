"""ruff and mypy find nothing, under the configuration in pyproject.toml."""
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CONFIG = tomllib.loads((ROOT/"pyproject.toml").read_text())["tool"]


def checked(*words):
    "Exit code and what was said by a checker"
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_ruff_finds_nothing(tmp_path):
    pytest.importorskip("ruff", reason="ruff is not installed (pip install lottery-nb[dev])")
    code, said = checked("ruff", "check", "--output-format", "concise", "--cache-dir", str(tmp_path))
    assert code == 0, said


def test_mypy_finds_nothing():
    pytest.importorskip("mypy", reason="mypy is not installed (pip install lottery-nb[dev])")
    code, said = checked("mypy")
    assert code == 0, said


def test_the_checkers_are_not_muzzled():
    "The families that find errors are on; no module is left out of mypy; few lines are excused, each with its code"
    assert {"F", "B", "UP"} <= set(CONFIG["ruff"]["lint"]["select"])
    assert not {"F", "B", "UP"} & set(CONFIG["ruff"]["lint"]["ignore"])
    assert not any(rule.startswith("F") for rules in CONFIG["ruff"]["lint"].get("per-file-ignores", {}).values() for rule in rules)
    assert "ignore_errors" not in str(CONFIG["mypy"]) and CONFIG["mypy"]["files"] == ["lottery_nb"]
    excused = [line for path in (ROOT/"lottery_nb").glob("*.py") for line in path.read_text().split("\n") if "type: ignore" in line or "noqa" in line]
    assert len(excused) <= 8
    assert [line for line in excused if not any(f"{mark}" in line for mark in ("type: ignore[", "noqa: "))] == []


def test_a_fault_would_be_found(tmp_path):
    "Both would see what they are for"
    (tmp_path/"faulty.py").write_text("import os\n\n\ndef half(n: int) -> int:\n    return n + 'a'\n")
    assert checked("ruff", "check", "--config", str(ROOT/"pyproject.toml"), "--no-cache", str(tmp_path))[0] == 1
    code, said = checked("mypy", "--config-file", str(ROOT/"pyproject.toml"), "--cache-dir", str(tmp_path/"cache"), str(tmp_path/"faulty.py"))
    assert code == 1 and "Unsupported operand types" in said
