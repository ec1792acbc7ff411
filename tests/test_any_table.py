"""Every page of every table: whatever part of a study is there, a page says what is missing and never breaks"""
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import folder_of, gates_of, synthetic, tickets_of

from lottery_nb import attention_page, chen, liu, prasanna
from lottery_nb.report import Section, board, conclusions, report_path
from lottery_nb.store import results

CHEN = (chen.chen_overview, chen.winning_tickets, chen.controls_beaten, chen.strict_levels, chen.metrics_beside, chen.transfers,
        chen.universal_ticket, chen.rewound, chen.sources_compared, chen.masks_in_common, chen.all_sparsities)
LIU = (liu.liu_overview, liu.mask_budgets, liu.average_scores, liu.robustness, liu.losses_and_scores, liu.along_training, liu.masks_apart,
       liu.distances_walked, liu.fewer_examples)
PRASANNA = (prasanna.prasanna_overview, prasanna.task_sizes, prasanna.bad_beside_baselines, prasanna.outcome_scores, prasanna.outcomes_drawn,
            prasanna.longer_retraining, prasanna.seeds_drawn, prasanna.survival_maps, prasanna.over_tasks, prasanna.importances_drawn, prasanna.seeds_agree,
            prasanna.tasks_in_common)
ATTENTION = (attention_page.attention_overview, attention_page.patterns_drawn, attention_page.shares_compared, attention_page.head_correlations)
PAGES = {"chen": CHEN, "liu": LIU}
FEW = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.fixture(scope="module")
def studies():
    "A real table of the small Wikipedia BERT, and a made-up one with every kind of run"
    some = [synthetic(grid).groupby(["model", "method", "source", "start", "mask_at", "mask_init"], group_keys=False, dropna=False).head(12)
            for grid in ("chen_2020_micro", "liu_2022_micro")]
    return [pd.read_csv(report_path("chen_2020").parent/"wiki_mini.csv"), pd.concat(some)]


def page(functions, table, path): whole(functions, tickets_of(table, path))


def whole(functions, runs):
    "All sections of a page, its beginning and its end, as a reader would see them"
    sections = [function(runs) for function in functions]
    for part in (*sections, board(*sections), conclusions(*sections)):
        assert isinstance(part, Section)
        words = part._repr_html_().split("base64")[0]
        assert ">nan<" not in words.lower() and "nan points" not in words and "Traceback" not in words
        assert not re.search(r"\bnan\b|\[&#x27;|\['", words.lower())


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


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    "A folder of made-up s- and m-pruning with gates, on four tasks of the micro grid, and what its heads attend to"
    root = folder_of("prasanna_2020_micro", tmp_path_factory.mktemp("pruned"), ("structured", "magnitude", "attention"), ("cola", "mrpc", "qnli", "wnli"))
    return folder_of("micro_attention", root, ("attention",), ("cola", "mrpc", "qnli", "wnli"))


@given(data=st.data())
@FEW
def test_prasannas_page_of_any_part_of_a_study(pruned, data):
    table, rng = prasanna.page_gates(str(pruned)), np.random.default_rng(data.draw(st.integers(0, 10**6)))
    rows = table[rng.random(len(table)) < data.draw(st.sampled_from([.02, .2, 1]))]
    for column in data.draw(st.lists(st.sampled_from(["experiment", "seed", "task"]), max_size=2, unique=True)):
        if len(rows): rows = rows[rows[column] == rng.choice(rows[column].unique())]
    for column in data.draw(st.lists(st.sampled_from(["full_score", "majority", "good_retrained", "bad_retrained", "good_size"]), max_size=2)):
        rows = rows.assign(**{column: rows[column].where(rng.random(len(rows)) < .5)})
    whole(PRASANNA, rows)


@pytest.mark.parametrize("lacking", [["majority", "learnt"], ["full_score"], ["good_size", "good_retrained"], ["start", "prune"], ["max_steps", "metric"], ["random_retrained", "bad_retrained"]])
def test_prasannas_page_of_a_table_without_columns(pruned, tmp_path, lacking):
    whole(PRASANNA, gates_of(prasanna.page_gates(str(pruned)).drop(columns=lacking), tmp_path/"table.csv"))


def test_prasannas_page_of_two_models_of_runs_that_learnt_nothing_and_of_none(pruned, tmp_path):
    table = prasanna.page_gates(str(pruned))
    other = table.assign(model="else/other-bert", id="x" + table.id, full_score=.5, majority=.5)
    whole(PRASANNA, gates_of(pd.concat([table, other]), tmp_path/"table.csv"))
    (tmp_path/"runs").mkdir()
    whole(PRASANNA, prasanna.page_gates(str(tmp_path/"runs")))


@given(data=st.data())
@FEW
def test_the_page_on_attention_of_any_part_of_a_study(pruned, data):
    "Results may lack their tickets, correlations, shares or the pre-trained model"
    rng, some = np.random.default_rng(data.draw(st.integers(0, 10**6))), data.draw(st.sampled_from([0, .05, .3, 1]))
    results = [dict(result) for result in attention_page.page_attention(str(pruned)) if rng.random() < some]
    lacking = data.draw(st.sampled_from(["", "shares", "correlations", "surviving", "pre-trained", "all", "norm"]))
    for result in results:
        if lacking in result: result[lacking] = {}
        elif lacking: result["shares"] = {place: row for place, row in result["shares"].items() if lacking not in place.split()}
        if rng.random() < .3: result["survivors"] = "survivors of one seed"
    whole(ATTENTION, results)


@pytest.mark.parametrize("lacking", [["task"], ["model"], ["seed"], ["ticket"], ["super_seeds"], ["blocks", "token_types"], ["shares.all fine-tuned raw.block"], ["correlations.raw.pearson"],
                                     ["correlations.raw.low", "correlations.norm.p"], ["shares."], ["correlations."]], ids=", ".join)
def test_the_page_on_attention_of_a_table_without_columns(pruned, tmp_path, lacking):
    "And with columns that look like its own and are not, and words for numbers"
    table = results(pruned, lambda said: None)
    table = table.drop(columns=[name for name in table if any(name == one or one.endswith(".") and name.startswith(one) for one in lacking)])
    table.loc[table.index[:3], [name for name in table if name.startswith("shares.")][:2]] = None
    table = table.assign(**{"shares.else": 1., "shares.some fine-tuned raw.block": .2, "correlations.raw": 3., "correlations raw.p": 3., "correlations.odd.pearson": .1, "correlations.norm.high": "high"})
    table.to_csv(tmp_path/"table.csv", index=False)
    whole(ATTENTION, attention_page.page_attention(str(tmp_path/"table.csv")))
