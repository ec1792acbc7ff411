"""Run folders and the results table."""
import json

import pytest

from lottery_nb.files import BadInput, read_json, runs_root, write_json
from lottery_nb.spec import TicketSpec
from lottery_nb.store import finish, open_run, read_result, results, stage_folder


def finished(root, **values):
    spec = TicketSpec(**values)
    finish(open_run(spec, root), task=spec.task, method=spec.method, metric="accuracy", score=.5, full_score=.6, sparsity=spec.sparsity, scores={"accuracy": .5})
    return spec


def test_the_table_is_rebuilt_from_the_folders(tmp_path):
    specs = [finished(tmp_path, seed=seed) for seed in range(3)]
    assert results(tmp_path).id.tolist() == sorted(spec.id for spec in specs)
    (tmp_path/specs[0].id/"result.json").unlink()
    assert len(results(tmp_path)) == 2


def test_a_half_written_run_is_not_in_the_table(tmp_path):
    open_run(TicketSpec(), tmp_path)
    assert len(results(tmp_path)) == 0 and read_result(tmp_path/TicketSpec().id) is None


@pytest.mark.parametrize("text, message", [("{", "is not valid JSON"), ("[]", "must hold a JSON object"), ('{"schema": 0}', "has schema 0"), ('{"schema": 1, "id": "x"}', "has no spec"),
                                           ('{"schema": 1, "score": "high"}', "its score is 'high'"), ('{"schema": 1, "spec": []}', "its spec is"), ('{"score": NaN}', "NaN is no finite number")])
def test_a_damaged_result_is_named_and_hides_no_other(text, message, tmp_path):
    good, bad = finished(tmp_path), finished(tmp_path, seed=1)
    (tmp_path/bad.id/"result.json").write_text(text)
    with pytest.warns(UserWarning, match=f"{bad.id}/result.json.*{message}"): assert results(tmp_path).id.tolist() == [good.id]


def test_what_a_kill_left_counts_for_nothing(tmp_path):
    "A folder that was being deleted, a copy of a run, and a run whose notebook did not come to its end"
    import shutil
    spec, other = finished(tmp_path), finished(tmp_path, seed=1)
    shutil.copytree(tmp_path/spec.id, tmp_path/f".{spec.id}.1234567.trash")
    assert len(results(tmp_path)) == 2
    write_json(tmp_path/other.id/"run.ipynb", {"metadata": {"papermill": {"end_time": None}}})
    assert results(tmp_path).id.tolist() == [spec.id]
    (tmp_path/other.id/"run.ipynb").write_text('{"cells": [')
    assert results(tmp_path).id.tolist() == [spec.id]
    shutil.copytree(tmp_path/spec.id, tmp_path/"copy")
    with pytest.warns(UserWarning, match="is another result of run"): assert len(results(tmp_path)) == 1


@pytest.mark.parametrize("beside", [0, 100_000])
def test_the_end_of_a_notebook_says_what_the_whole_says(beside, tmp_path):
    "Notes of papermill before and after much else; a notebook that was cut off is read as none"
    import nbformat
    from lottery_nb.store import noted_at_the_end, notebook_times
    notes = {"duration": 3.2, "end_time": "2026-01-01T00:00:03", "exception": None, "parameters": {"text": 'a "papermill": { b'}}
    cells = [nbformat.v4.new_code_cell("1", metadata={"papermill": {"duration": 7}}, outputs=[nbformat.v4.new_output("stream", text='\n  "papermill": {"duration": 9}}')])]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"papermill": notes, "widgets": {"state": "x" * beside}})
    nbformat.write(notebook, tmp_path/"run.ipynb")
    assert noted_at_the_end(tmp_path/"run.ipynb") == ({} if beside else notes)   # else the whole is read
    assert notebook_times(tmp_path) == notes
    text = (tmp_path/"run.ipynb").read_text()
    for kept in (len(text) - 5, len(text) // 2):
        (tmp_path/"run.ipynb").write_text(text[:kept])
        assert notebook_times(tmp_path) == {}


def test_no_number_that_is_none_is_written(tmp_path):
    with pytest.raises(FloatingPointError, match="result.json was not written: scores.loss is no finite number"): finish(open_run(TicketSpec(), tmp_path), score=.5, scores={"loss": float("nan")})
    assert read_result(tmp_path/TicketSpec().id) is None


def test_an_unwritable_place_is_an_os_error_that_names_it(tmp_path):
    (tmp_path/"file").write_text("")
    with pytest.raises(OSError, match="file"): open_run(TicketSpec(), tmp_path/"file")


def test_a_run_of_a_newer_version_with_more_fields_is_still_opened(tmp_path):
    folder = open_run(TicketSpec(), tmp_path)
    write_json(folder/"spec.json", json.loads((folder/"spec.json").read_text()) | {"a_field_of_tomorrow": 1})
    assert open_run(TicketSpec(), tmp_path) == folder


def test_a_folder_of_an_older_version_that_left_a_field_open_is_found_again(tmp_path):
    folder = open_run(TicketSpec(), tmp_path)
    write_json(folder/"spec.json", read_json(folder/"spec.json") | {"mask_rank": None})
    assert open_run(TicketSpec(), tmp_path) == folder


def test_an_unfinished_folder_of_a_version_with_fewer_fields_is_found_again(tmp_path):
    folder = open_run(TicketSpec(), tmp_path)
    write_json(folder/"spec.json", {name: value for name, value in read_json(folder/"spec.json").items() if name != "source_train"})
    assert open_run(TicketSpec(), tmp_path) == folder
    write_json(folder/"spec.json", read_json(folder/"spec.json") | {"sparsity": .1})
    with pytest.raises(BadInput, match="belongs to another spec"): open_run(TicketSpec(), tmp_path)


def test_the_root_comes_from_the_argument_then_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("LOTTERY_NB_RUNS", str(tmp_path/"env"))
    assert runs_root() == tmp_path/"env" and runs_root(tmp_path) == tmp_path
    assert stage_folder("x", {"a": 1}).parent == tmp_path/"env"/"stages"


@pytest.mark.parametrize("lost", ["template", "task", "model", "sparsity"])
def test_a_spec_that_lost_a_field_is_another_or_the_usual_one_never_a_traceback(lost, tmp_path):
    spec = TicketSpec(task="sst2", method="omp", sparsity=.7)
    path = open_run(spec, tmp_path)/"spec.json"
    write_json(path, {name: value for name, value in read_json(path).items() if name != lost})
    if lost != "template": assert open_run(spec, tmp_path) == path.parent   # their defaults are these
    else:
        with pytest.raises(BadInput, match="belongs to another spec of the same id"): open_run(spec, tmp_path)
