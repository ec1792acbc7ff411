"""Every library notebook runs from top to bottom, and the package is what the notebooks export."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import warm

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = sorted(ROOT.glob("nbs/*.ipynb"))
TUTORIALS = sorted(ROOT.glob("nbs/tutorials/*.ipynb"))


def notebook_test(path, runs):
    "nbdev's own runner on a notebook: its exit code and what it said"
    code = "import sys; from nbdev.test import nbdev_test; nbdev_test(path=sys.argv[1], n_workers=0, do_print=True)"
    done = subprocess.run([warm.command("python"), "-c", code, path], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"LOTTERY_NB_RUNS": str(runs)})
    return done.returncode, done.stdout


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path):
    "nbdev's own runner executes the cells as they stand"
    code, said = notebook_test(path, tmp_path/"runs")
    assert code == 0, said[-4000:]


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_runs(path, shared_runs):
    "The same for the tutorials; what several of them train is trained once"
    code, said = notebook_test(path, shared_runs)
    assert code == 0, said[-4000:]


def texts(root): return {path.relative_to(root): path.read_text() for pattern in ("lottery_nb/*.py", "nbs/*.ipynb", "nbs/tutorials/*.ipynb", "nbs/reports/*.ipynb") for path in root.glob(pattern)}


def test_exporting_and_cleaning_change_nothing(tmp_path):
    copy = tmp_path/"copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".venv", "runs", ".git", "*.egg-info", "__pycache__"))
    for step in ("nbdev_export", "nbdev_clean"): subprocess.run([Path(sys.executable).parent/step], cwd=copy, check=True, capture_output=True)
    ours, exported = texts(ROOT), texts(copy)
    assert {path for path in ours | exported if ours.get(path) != exported.get(path)} == set()


def test_cleaning_keeps_the_parameters_tag(tmp_path):
    "nbdev_clean drops cell metadata that is not allowed by name; papermill would then run with the defaults and exit 0"
    shutil.copytree(ROOT/"nbs"/"runs", tmp_path/"nbs"/"runs")
    for name in ("settings.ini", "pyproject.toml"): shutil.copy(ROOT/name, tmp_path/name)
    (tmp_path/"lottery_nb").mkdir()
    (tmp_path/"lottery_nb"/"__init__.py").write_text('__version__ = "0"\n')
    subprocess.run([Path(sys.executable).parent/"nbdev_clean"], cwd=tmp_path, check=True, capture_output=True)
    for path in (tmp_path/"nbs"/"runs").glob("*.ipynb"):
        assert path.read_text().count('"parameters"') == 1, path.name
