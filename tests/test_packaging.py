"""What a wheel carries: built offline from the repository, looked at from outside."""
import shutil
import subprocess
import sys
import zipfile

from conftest import ROOT


def test_wheel_is_typed_and_carries_data_and_templates(tmp_path):
    source = shutil.copytree(ROOT, tmp_path/"source", ignore=shutil.ignore_patterns(".git", ".venv", "runs_*", "tutorials", "__pycache__", "build", "*.egg-info"))
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", tmp_path, source], check=True)
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    wanted = {f"lottery_nb/{path.relative_to(ROOT/'lottery_nb')}" for path in (ROOT/"lottery_nb").rglob("*") if path.suffix in (".py", ".csv")}
    wanted |= {f"lottery_nb/{folder}/{path.name}" for folder in ("runs", "reports") for path in (ROOT/"nbs"/folder).glob("*.ipynb")}
    wanted |= {f"lottery_nb/grids/{path.name}" for path in (ROOT/"grids").glob("*.yaml")}
    assert not wanted - names
    assert "lottery_nb/py.typed" in names
