"""Execute notebooks in place and keep only what a reader needs: `python tests/execute_notebooks.py [NOTEBOOK ...]`."""
import json
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
KERNEL = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}


def readable(output: dict) -> bool:
    "Progress bars and warnings are not for the page"
    return output.get("name") != "stderr" and "application/vnd.jupyter.widget-view+json" not in output.get("data", {})


def tidy(cell: dict) -> dict:
    "A cell without counts, with `tags` as its only metadata"
    cell["metadata"] = {k: v for k, v in cell["metadata"].items() if k == "tags"}
    if cell["cell_type"] != "code": return cell
    cell["execution_count"] = None
    cell["outputs"] = [o for o in cell["outputs"] if readable(o)]
    for output in cell["outputs"]:
        if "execution_count" in output: output["execution_count"] = None
        if "metadata" in output: output["metadata"] = {}
    return cell


def execute(path: Path):
    "Run a notebook from its own folder and write it back"
    notebook = nbformat.read(path, 4)
    NotebookClient(notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute()
    raw = json.loads(nbformat.writes(notebook))
    raw |= {"metadata": KERNEL, "cells": [tidy(cell) for cell in raw["cells"]]}
    path.write_text(json.dumps(raw, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for path in [Path(p) for p in sys.argv[1:]] or sorted([*ROOT.glob("nbs/*.ipynb"), *ROOT.glob("nbs/tutorials/*.ipynb")]):
        print(path, flush=True)
        execute(path)
