"""README's findings are what the reports' verdicts say today"""
import os
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from lottery_nb import findings as findings_of
from lottery_nb.cli import main
from lottery_nb.files import BadInput
from lottery_nb.findings import PAGES, PAPER_OF, claim_lines, findings, in_readme, table_path, write_findings
from lottery_nb.tables import PAPERS
from lottery_nb.verdicts import weigh

README = Path(__file__).resolve().parent.parent/"README.md"


def test_readme_says_what_the_reports_say(tmp_path):
    "The whole file, made again from the results tables, is the file"
    copy = tmp_path/"README.md"
    copy.write_bytes(README.read_bytes())
    assert write_findings(copy).read_text(encoding="utf-8") == README.read_text(encoding="utf-8")
    assert "**holds**" in copy.read_text(encoding="utf-8").split("<!-- findings -->")[1]


def test_every_claim_once():
    table = findings()
    assert not table.duplicated(["paper", "claim"]).any() and {PAPER_OF.get(page, page) for page in PAGES} <= set(PAPERS)
    assert any(table_path(paper, "micro").exists() for paper in PAGES)
    assert not table.isin(["nan", "NaN"]).any().any()


def test_a_file_without_marks_is_refused():
    with pytest.raises(BadInput, match="has no marks <!-- findings -->"): in_readme("nothing here", pd.DataFrame())


def test_claims_are_said_of_any_folder_or_table(tmp_path, monkeypatch, capsys):
    "A verdict a line with its number, and how many claims no run speaks to"
    rows = [dict(id=f"{method}{seed}", template="ticket", model="m", task=task, method=method, seed=seed, sparsity=sparsity, asked_sparsity=sparsity, pool="encoder",
                 scope="global", start="pretrained", rewind=0.0, metric="accuracy", full_score=.8, majority=.5, score=score + .001*seed)
            for task in ("sst2", "mrpc") for seed in range(3)
            for method, sparsity, score in (("dense", 0., .8), ("imp", .7, .8), ("random", .7, .6))]
    table = tmp_path/"table.csv"
    pd.DataFrame(rows).to_csv(table, index=False)
    lines = claim_lines("chen_2020", table)
    beaten = next(line for line in lines if line.startswith("IMP beats random, at 70 % (Table 2), m: holds, +20.0"))
    assert "2 tasks and 3 seeds" in beaten and lines[-1].endswith("of chen_2020 without runs to judge by")
    assert claim_lines("liu_2022", tmp_path/"absent") == [f"no runs of liu_2022 in {tmp_path/'absent'}"]
    monkeypatch.chdir(tmp_path)   # without runs/
    assert main(["claims", "chen_2020"]) == 0 and "no runs of chen_2020" in capsys.readouterr().out
    assert main(["claims", "devlin_2019"]) == 2 and "paper must be one of chen_2020, liu_2022, prasanna_2020, attention; got 'devlin_2019'" in capsys.readouterr().err


@pytest.mark.parametrize("given, said", [
    ({}, "make english needs data: DATA=reviews.csv"),
    ({"DATA": "{here}"}, 'LOTTERY_NB_DATA="{here}" LOTTERY_NB_TASK="sst2"'),
    ({"DATA": "{here}", "TASK": "cola"}, 'LOTTERY_NB_DATA="{here}" LOTTERY_NB_TASK="cola"'),
    ({"DATA": "{here}/reviews.csv"}, 'LOTTERY_NB_DATA="" LOTTERY_NB_TASK="{here}/reviews.csv"'),
    ({"TASK": "cola"}, 'LOTTERY_NB_DATA="" LOTTERY_NB_TASK="cola"'),
])
def test_make_english_reads_a_folder_a_table_or_the_hub(given, said, tmp_path):
    "A dry run of make, with the install taken for done; without data one sentence, and nothing begins"
    words = [f"{name}={value.format(here=tmp_path)}" for name, value in given.items()]
    known = {name: value for name, value in os.environ.items() if name not in ("LOTTERY_NB_DATA", "DATA", "TASK", "MAKEFLAGS")}
    done = subprocess.run(["make", "-o", "install", "english", "BIN=true", *["--dry-run"]*bool(given), *words], cwd=README.parent, env=known, capture_output=True, text=True)
    assert said.format(here=tmp_path) in done.stdout + done.stderr and (done.returncode == 0) == bool(given)


def test_no_model_takes_anothers_place(monkeypatch):
    "Two models in one table: every verdict is printed, each under its model"
    said = [weigh(claim, "Table 2", model, paired_gains(gain)) for claim, model, gain in (("x", "micro", 1.), ("x", "micro-roberta", 2.), ("y", "micro, micro-roberta", 3.))]
    monkeypatch.setattr(findings_of, "all_verdicts", lambda paper, ending: said if (paper, ending) == ("liu_2022", "micro") else [])
    table = findings_of.findings()
    assert dict(zip(table.claim, table["micro world"].str.extract(r" (\S+) \[")[0])) == {"x": "+1.0", "x, on micro-roberta": "+2.0", "y": "+3.0"}


def paired_gains(gain): return pd.DataFrame([("sst2", seed, gain + .1*(seed - 1)) for seed in range(3)], columns=["task", "seed", "gain"])
