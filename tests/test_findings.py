"""README's findings are what the reports' verdicts say today"""
from pathlib import Path

import pandas as pd
import pytest

from lottery_nb.files import BadInput
from lottery_nb.findings import PAGES, findings, in_readme, table_path, write_findings
from lottery_nb.tables import PAPERS

README = Path(__file__).resolve().parent.parent/"README.md"


def test_readme_says_what_the_reports_say(tmp_path):
    "The whole file, made again from the results tables, is the file"
    copy = tmp_path/"README.md"
    copy.write_bytes(README.read_bytes())
    assert write_findings(copy).read_text(encoding="utf-8") == README.read_text(encoding="utf-8")
    assert "**holds**" in copy.read_text(encoding="utf-8").split("<!-- findings -->")[1]


def test_every_claim_once():
    table = findings()
    assert not table.duplicated(["paper", "claim"]).any() and set(PAGES) <= set(PAPERS)
    assert any(table_path(paper, "micro").exists() for paper in PAGES)
    assert not table.isin(["nan", "NaN"]).any().any()


def test_a_file_without_marks_is_refused():
    with pytest.raises(BadInput, match="has no marks <!-- findings -->"): in_readme("nothing here", pd.DataFrame())
