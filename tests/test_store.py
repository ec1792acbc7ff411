"""Run folders and the results table."""
import json

import pytest

from lottery_nb.files import BadInput, read_json, write_json
from lottery_nb.spec import TicketSpec
from lottery_nb.store import finish, open_run, read_result, results, runs_root, stage_folder


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


def test_a_malformed_result_is_named(tmp_path):
    spec = finished(tmp_path)
    (tmp_path/spec.id/"result.json").write_text("{")
    with pytest.raises(BadInput, match=f"{spec.id}/result.json is not valid JSON"): results(tmp_path)


def test_an_older_schema_is_named(tmp_path):
    spec = finished(tmp_path)
    write_json(tmp_path/spec.id/"result.json", read_result(tmp_path/spec.id) | {"schema": 0})
    with pytest.raises(BadInput, match="has schema 0"): results(tmp_path)


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
