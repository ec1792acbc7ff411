"""Grids before they run: what is refused, what is planned, what is printed."""
import itertools

import pytest
from hypothesis import given, settings, strategies as st

from lottery_nb.cli import main
from lottery_nb.files import BadInput
from lottery_nb.spec import expand, read_grid


def refused(grid):
    with pytest.raises(BadInput) as error: expand(grid)
    return str(error.value)


def test_everything_wrong_with_a_grid_is_said_at_once():
    said = refused(dict(grids=[
        dict(template="tiket"), dict(sparsty=.5, sed=1), dict(task="sst2", seed=[]), "sst2",
        dict(task=["sst3", "mrpc"], sparsity=2., learning_rate="2e-5"), dict(method="dense", sparsity=.5), dict(task="rte", seed=[3, 3]),
        dict(max_steps=10, epochs=3), dict(round_steps=10, round_epochs=1), dict(method="standard", rewind=.1)]))
    for part in ("did you mean 'ticket'", "has no field 'sparsty'", "has no field 'sed'", "the list of seed has no values", "a block must be a mapping", "task must be one of", "sparsity must be in",
                 "2.0e-5 a number", "method dense and sparsity 0.5", "run rte-imp-s70-r3", "max_steps 10 and epochs 3", "round_steps 10 and round_epochs 1", "standard pruning does not rewind"):
        assert part in said, part
    assert said.startswith("the grid has 13 error(s), nothing was run")


@pytest.mark.parametrize("values", [dict(method=5), dict(method="tamt-mlm", model="bert-base-uncased", sparsity="half"), dict(task={"a": 1}), dict(seed=[[1]]), {1: 2}, dict(template=["ticket"])], ids=str)
def test_values_of_any_shape_are_bad_input_and_no_crash(values):
    assert "the grid has 1 error(s)" in refused(values)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from(["task", "seed", "sparsity", "epochs"]), st.lists(st.integers(0, 3), min_size=0, max_size=3), max_size=3))
def test_a_grid_is_the_product_of_its_lists_or_is_refused(lists):
    names = {"task": ["sst2", "mrpc", "rte", "cola"], "seed": [0, 1, 2, 3], "sparsity": [.1, .3, .5, .7], "epochs": [1, 2, 3, 5]}
    block = {name: [names[name][i] for i in picked] for name, picked in lists.items()}
    good = all(picked and len(set(picked)) == len(picked) for picked in lists.values())
    if not good:
        refused(block)
        return
    specs = expand(block)
    assert [tuple(getattr(spec, name) for name in block) for spec in specs] == list(itertools.product(*block.values()))
    assert len({spec.id for spec in specs}) == len(specs)


def test_two_spellings_of_one_run_are_a_duplicate():
    assert "asked for more than once (2 points" in refused(dict(task=["SST-2", "sst2"]))
    assert "asked for more than once" in refused(dict(task="mrpc", epochs=[None, 5]))   # 5 is the default of mrpc


def test_a_bad_grid_is_2_and_leaves_nothing(tmp_path, capsys):
    (tmp_path/"grid.yaml").write_text("template: ticket\nsparsty: [0.5, 0.7]\nseed: [0, 0]\n")
    for command in (["sweep"], ["sweep", "--dry-run"], ["status"]):
        assert main([*command, str(tmp_path/"grid.yaml"), "--runs", str(tmp_path/"runs")]) == 2
        assert "has no field 'sparsty' (did you mean 'sparsity'?)" in capsys.readouterr().err
    assert not (tmp_path/"runs").exists()


def test_keys_given_twice_are_named_with_their_lines(tmp_path):
    (tmp_path/"grid.yaml").write_text("grids:\n  - template: ticket\n    seed: 0\n    seed: 1\n  - {task: rte, task: mrpc}\n")
    with pytest.raises(BadInput, match=r"seed \(line 4\); task \(line 5\)"): read_grid(tmp_path/"grid.yaml")


def test_a_folder_is_no_grid(tmp_path, capsys):
    assert main(["sweep", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
