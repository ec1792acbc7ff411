"What trainings took, and evaluations on the way: times lie beside stages and results, never in them"
import os
import time
from dataclasses import replace

import pytest

from lottery_nb.baseline import WEIGHTS, dense, target_spec
from lottery_nb.files import BadInput, clock, read_clock, read_json, remove, stage, stage_hours
from lottery_nb.methods import hours_taken
from lottery_nb.running import run
from lottery_nb.spec import StructuredSpec, TicketSpec
from lottery_nb.store import results, run_folder
from lottery_nb.training import EVALUATIONS, Keeper


@pytest.fixture
def spec(tiny_model, tiny_data):
    return TicketSpec(task=str(tiny_data), model=str(tiny_model), method="imp", sparsity=.2, batch_size=8, max_steps=6, max_length=16)


def seconds(folder): return 3600 * stage_hours(folder)


def test_a_killed_attempt_counts_up_to_its_last_file(tmp_path):
    folder, attempts = tmp_path/"stage", []
    def make(partial):
        attempts.append(partial)
        if len(attempts) == 1:
            (partial/"half").write_text("half")
            os.utime(partial/"half", (time.time() + 100, time.time() + 100))   # written 100 seconds after the beginning
            raise RuntimeError("killed")
    with pytest.raises(RuntimeError): stage(folder, make)
    assert stage_hours(folder) is None and "begun" in read_clock(folder)
    stage(folder, make)
    assert 100 <= seconds(folder) < 130


def test_time_of_a_stage_is_its_own(tmp_path):
    inner, outer = tmp_path/"inner", tmp_path/"outer"
    stage(outer, lambda partial: stage(inner, lambda part: time.sleep(.3)))
    assert seconds(inner) >= .3 > seconds(outer)
    stage(tmp_path/"third", lambda partial: stage(inner, None))
    assert seconds(tmp_path/"third") < .3


def test_a_stage_made_anew_is_counted_anew(tmp_path):
    stage(tmp_path/"stage", lambda partial: time.sleep(.3))
    remove(tmp_path/"stage")
    assert not clock(tmp_path/"stage").exists()
    stage(tmp_path/"stage", lambda partial: None)
    assert seconds(tmp_path/"stage") < .3


@pytest.mark.parametrize("text", ["", "{", "[]", '{"begun": 1}', '{"seconds": "long"}', '{"seconds": true}'])
def test_a_damaged_clock_is_no_clock(tmp_path, text):
    folder = stage(tmp_path/"stage", lambda partial: None)
    clock(folder).write_text(text)
    assert stage_hours(folder) is None


def test_hours_of_a_run_are_those_of_its_stages(spec, tmp_path):
    "IMP of two rounds takes the full model's training and one more; both runs read the same stages"
    run(spec, tmp_path)
    (row,) = results(tmp_path).to_dict("records")
    levels = [stage_hours(path) for path in (tmp_path/"stages").glob("imp-*") if path.is_dir()]
    assert len(levels) == 2 and row["hours_find"] == pytest.approx(sum(levels) + stage_hours(dense(spec, tmp_path)))
    assert row["hours_full"] == stage_hours(dense(spec, tmp_path)) and row["hours_retrain"] == stage_hours(run_folder(spec, tmp_path)/"retrained")


def test_what_kept_no_clock_is_not_known(spec, tmp_path):
    run(spec, tmp_path)
    retrained, full = run_folder(spec, tmp_path)/"retrained", dense(spec, tmp_path)
    for path in (tmp_path/"stages").glob(".imp-*.clock.txt"): path.unlink()
    taken = hours_taken(spec, retrained, full)
    assert taken["find"] is None and taken["full"] > 0
    assert hours_taken(replace(spec, method="omp"), retrained, full)["find"] == 0


def test_looks_change_nothing_but_what_is_reported(spec, tmp_path):
    plain, watched = target_spec(spec), replace(target_spec(spec), judge_every=2)
    folders = dense(plain, tmp_path), dense(watched, tmp_path)
    assert folders[0] != folders[1] and len({(folder/WEIGHTS).read_bytes() for folder in folders}) == 1
    seen = read_json(folders[1]/EVALUATIONS)
    assert list(seen) == ["0000002", "0000004", "0000006"] and seen["0000006"] == read_json(folders[0]/"scores.json")
    best = max(scores["accuracy"] for scores in seen.values())
    assert read_json(folders[1]/"scores.json") == next(scores for scores in seen.values() if scores["accuracy"] == best)


def test_the_best_look_is_reported(spec, tmp_path, monkeypatch):
    looks = iter([.5, .9, .7])
    monkeypatch.setattr("lottery_nb.baseline.evaluate", lambda *_: {"accuracy": next(looks)})
    assert read_json(dense(replace(spec, judge_every=2), tmp_path)/"scores.json") == {"accuracy": .9}


def test_a_watched_training_that_is_killed_ends_in_the_same_bytes(spec, tmp_path, monkeypatch):
    watched = replace(target_spec(spec), judge_every=2)
    whole = {path.name: path.read_bytes() for path in dense(watched, tmp_path/"whole").iterdir()}
    monkeypatch.setattr("lottery_nb.training.CHECKPOINT_SECONDS", 0)
    original, calls = Keeper.on_save, []
    def mortal(self, *args, **rest):
        calls.append(1)
        if len(calls) == 3: raise KeyboardInterrupt
        original(self, *args, **rest)
    monkeypatch.setattr(Keeper, "on_save", mortal)
    with pytest.raises(KeyboardInterrupt): dense(watched, tmp_path/"torn")
    assert {path.name: path.read_bytes() for path in dense(watched, tmp_path/"torn").iterdir()} == whole


def test_masks_are_found_without_looks(spec, tmp_path):
    "Whether a ticket is judged on the way does not change its mask, nor make its chain again"
    run(spec, tmp_path)
    before = set((tmp_path/"stages").glob("imp-*"))
    run(replace(spec, judge_every=3), tmp_path)
    assert set((tmp_path/"stages").glob("imp-*")) == before


def test_only_tickets_are_judged_on_the_way():
    with pytest.raises(BadInput, match="judge_every is for tickets, must be 0 in structured, got 50"): StructuredSpec(judge_every=50)
    with pytest.raises(BadInput, match="judge_every must be at least 0, got -1"): TicketSpec(judge_every=-1)
