"""Notebooks lead on: to the next, to the papers' items, to where D and B numbers are explained; every link leads somewhere."""
import json
import re
from pathlib import Path

import pytest
from link_notebooks import source, wanted


@pytest.mark.parametrize("path, text", wanted().items(), ids=lambda value: value.stem if isinstance(value, Path) else "")
def test_a_notebook_ends_with_its_links(path, text):
    last = json.loads(path.read_text())["cells"][-1]
    assert (last["id"], source(last)) == ("next", text), "python tests/link_notebooks.py writes them"


def test_links_lead_somewhere():
    broken = [f"{path.name}: {target}" for path in wanted() for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "markdown"
              for target in re.findall(r"\]\(([^)#\s]+\.(?:ipynb|md|yaml|csv))\)", source(cell)) if not target.startswith("http") and not (path.parent/target).exists()]
    assert broken == []
