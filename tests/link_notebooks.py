"""Every notebook ends with a link to the next: `python tests/link_notebooks.py` writes them, a test says where one is missing."""
import json
import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAPERS = {"Chen et al. 2020": "chen_2020", "Liu et al. 2022": "liu_2022", "Prasanna et al. 2020": "prasanna_2020"}
CODES = re.compile(r"\b[DB]\d{1,2}\b(?=[ ,.:;)·]|\)|$)")


def source(cell): return "".join(cell["source"])


def title(path): return source(json.loads(path.read_text())["cells"][0]).split("\n")[0].lstrip("# ")


def orders(root=ROOT):
    "The two reading orders: tutorials, and the library after its index"
    return [sorted(root.glob("nbs/tutorials/*.ipynb")), [root/"nbs"/"index.ipynb", *sorted(root.glob("nbs/[0-9]*.ipynb"))]]


def link(path, target, words=None): return f"[{words or title(target)}]({os.path.relpath(target, path.parent)})"


def links(path, after, root=ROOT):
    "The text of the last cell"
    cells = [source(cell) for cell in json.loads(path.read_text())["cells"] if cell["id"] != "next"]
    explained = root/"nbs"/"tutorials"/"06_paper_versus_code.ipynb"
    parts = ["Next: " + (link(path, after) if after else link(path, root/"nbs"/"index.ipynb", "the library, in reading order"))]
    if path.parent.name == "tutorials":
        parts += [f"beside the paper's items: {link(path, root/'nbs'/'reports'/f'{name}.ipynb', paper)}" for paper, name in PAPERS.items() if paper in cells[0]]
    if path != explained and any(CODES.search(cell) for cell in cells):
        parts.append(f"numbers such as D8 and B11 name differences between a paper and its code: [{title(explained)}]({os.path.relpath(explained, path.parent)}#Every-number,-one-line-each)")
    return " · ".join(parts)


def wanted(root=ROOT):
    "Notebook → its last cell's text"
    return {path: links(path, after, root) for order in orders(root) for path, after in zip(order, [*order[1:], None])}


def write(path, text):
    notebook = json.loads(path.read_text())
    cells = [cell for cell in notebook["cells"] if cell["id"] != "next"]
    notebook["cells"] = [*cells, {"cell_type": "markdown", "id": "next", "metadata": {}, "source": text.splitlines(keepends=True)}]
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for path, text in wanted().items(): write(path, text)
