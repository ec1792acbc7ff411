"""Every page of every table: whatever part of a study is there, a page says what is missing and never breaks"""
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import synthetic, tickets_of

from lottery_nb import chen, liu
from lottery_nb.report import Section, board, conclusions, report_path

CHEN = (chen.chen_overview, chen.winning_tickets, chen.controls_beaten, chen.strict_levels, chen.metrics_beside, chen.transfers,
        chen.universal_ticket, chen.rewound, chen.sources_compared, chen.masks_in_common, chen.all_sparsities)
LIU = (liu.liu_overview, liu.mask_budgets, liu.average_scores, liu.robustness, liu.losses_and_scores, liu.along_training, liu.masks_apart,
       liu.distances_walked, liu.fewer_examples)
PAGES = {"chen": CHEN, "liu": LIU}
FEW = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.fixture(scope="module")
def studies():
    "A real table of the small Wikipedia BERT, and a made-up one with every kind of run"
    some = [synthetic(grid).groupby(["model", "method", "source", "start", "mask_at", "mask_init"], group_keys=False, dropna=False).head(12)
            for grid in ("chen_2020_micro", "liu_2022_micro")]
    return [pd.read_csv(report_path("chen_2020").parent/"wiki_mini.csv"), pd.concat(some)]


def page(functions, table, path):
    "All sections of a page, its beginning and its end, as a reader would see them"
    sections = [function(tickets_of(table, path)) for function in functions]
    for part in (*sections, board(*sections), conclusions(*sections)):
        assert isinstance(part, Section)
        words = part._repr_html_().split("base64")[0]
        assert ">nan<" not in words.lower() and "nan points" not in words and "Traceback" not in words


@pytest.mark.parametrize("name", PAGES)
@given(data=st.data())
@FEW
def test_a_page_of_any_part_of_a_study(studies, tmp_path, name, data):
    table = data.draw(st.sampled_from(studies))
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    rows = table[rng.random(len(table)) < data.draw(st.sampled_from([0, .02, .2, 1]))]
    for column in data.draw(st.lists(st.sampled_from(["method", "seed", "task", "asked_sparsity"]), max_size=2, unique=True)):
        if len(rows): rows = rows[rows[column] == rng.choice(rows[column].unique())]
    for column in data.draw(st.lists(st.sampled_from(["score", "full_score", "mlm_loss", "majority", "learnt"]), max_size=2)):
        if column in rows: rows = rows.assign(**{column: rows[column].where(rng.random(len(rows)) < .5)})
    page(PAGES[name], rows, tmp_path/"table.csv")


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("lacking", [["majority", "learnt"], ["mlm_loss", "kd_loss"], ["rewind", "prune_first"], ["full_score"], ["folder", "pool", "scope"]])
def test_a_page_of_a_table_without_columns(studies, tmp_path, name, lacking):
    page(PAGES[name], studies[1].drop(columns=lacking, errors="ignore"), tmp_path/"table.csv")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_of_two_models_and_of_runs_that_learnt_nothing(studies, tmp_path, name):
    other = studies[1].assign(model="else/other-bert", full_score=.5, score=.5, learnt=False)
    page(PAGES[name], pd.concat([studies[1], other.assign(id="x" + other.id)]), tmp_path/"table.csv")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_without_runs(name):
    for function in PAGES[name]: assert isinstance(function({}), Section)
