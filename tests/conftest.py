"""Shared by all tests: quiet libraries, one thread a worker, and where the real data lies."""
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def assets() -> Path:
    "Folder of real data; a test that asks for it is skipped where it is absent"
    folder = Path(os.environ.get("LOTTERY_NB_ASSETS") or ROOT.parent/"shared"/"assets")
    if not folder.is_dir(): pytest.skip(f"no real data at {folder} (set LOTTERY_NB_ASSETS)")
    return folder
