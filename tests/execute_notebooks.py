"""Execute notebooks in place and keep only what a reader needs: `python tests/execute_notebooks.py [NOTEBOOK ...]`."""
import base64
import io
import json
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
KERNEL = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}


def readable(output: dict) -> bool:
    "Progress bars and warnings are not for the page"
    return output.get("name") != "stderr" and "application/vnd.jupyter.widget-view+json" not in output.get("data", {})


def smaller(png: str) -> str:
    "A figure in 96 colours: a third of the bytes, and the eye sees no difference"
    file = io.BytesIO()
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    image.quantize(96, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def tidy(cell: dict) -> dict:
    "A cell without counts, with `tags` as its only metadata"
    cell["metadata"] = {k: v for k, v in cell["metadata"].items() if k == "tags"}
    if cell["cell_type"] != "code": return cell
    cell["execution_count"] = None
    cell["outputs"] = [o for o in cell["outputs"] if readable(o)]
    for output in cell["outputs"]:
        if "execution_count" in output: output["execution_count"] = None
        if "metadata" in output: output["metadata"] = {}
        data = output.get("data", {})
        if "text/html" in data and len("".join(data.get("text/plain", ""))) > 1000: del data["text/plain"]   # it says all twice
        if "image/png" in output.get("data", {}): output["data"]["image/png"] = smaller(output["data"]["image/png"])
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
