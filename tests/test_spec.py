"""Specs: ids that never change, validation that names the field, grids."""
from dataclasses import asdict, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lottery_nb.files import BadInput
from lottery_nb.grid import expand, read_grid
from lottery_nb.spec import CHOICES, READS, TASKS, RunSpec, TicketSpec, make_spec, parse_value

GOLDEN = {
    "sst2-imp-s70-r0-06a2f3": dict(),
    "mrpc-omp-s90-r0-9340c9": dict(task="mrpc", method="omp", sparsity=.9),
    "stsb-dense-s0-r3-13a864": dict(task="stsb", method="dense", seed=3),
    "squad-random-s30-r0-f4773b": dict(task="squad", method="random", sparsity=.3, model="bert-base-uncased", epochs=4),
}


@pytest.mark.parametrize("id", GOLDEN)
def test_golden_ids(id):
    "Folders made by an older version are found again, unless the micro world has changed"
    assert TicketSpec(**GOLDEN[id]).id == id


ticket_values = st.fixed_dictionaries(dict(task=st.sampled_from(TASKS), method=st.sampled_from(sorted(READS)), sparsity=st.floats(0, .99), seed=st.integers(0, 99),
                                           pool=st.sampled_from(CHOICES["pool"]), model=st.sampled_from(["micro", "bert-base-uncased"]), epochs=st.none() | st.floats(.1, 9)))


@given(values=ticket_values)
def test_a_spec_survives_a_round_trip_through_its_own_fields(values):
    spec = make_spec("ticket", values)
    assert make_spec("ticket", asdict(spec)) == spec
    assert make_spec("ticket", asdict(spec)).id == spec.id


@given(one=ticket_values, other=ticket_values)
def test_different_specs_have_different_ids(one, other):
    a, b = TicketSpec(**one), TicketSpec(**other)
    assert (a == b) == (a.id == b.id)


@given(values=ticket_values)
def test_command_line_text_reads_back(values):
    for name, value in asdict(TicketSpec(**values)).items():
        if value not in ("", None): assert parse_value("ticket", name, str(value)) == value


BAD = [(dict(sparsity=-.1), r"sparsity must be in \[0, 1\), got -0.1"), (dict(sparsity=1), "sparsity"), (dict(pool="decoder"), "pool must be one of encoder"),
       (dict(task="sst3"), "task must be one of"), (dict(rewind=1.), "rewind must be in"), (dict(step=0.), "step must be in"), (dict(learning_rate=0.), "learning_rate must be more than 0"),
       (dict(max_steps=0), "max_steps must be at least 1"), (dict(max_train=2.5), "max_train must be int"), (dict(rewind_head="maybe"), "rewind_head must be bool"),
       (dict(epochs=True), "epochs must be float"), (dict(scope="layer"), "scope must be one of global, matrix"), (dict(round_steps=0), "round_steps must be at least 1")]


@pytest.mark.parametrize("values, message", BAD, ids=[str(values) for values, _ in BAD])
def test_bad_values_are_named(values, message):
    with pytest.raises(BadInput, match=message): TicketSpec(**values)


def test_nan_is_refused():
    with pytest.raises(BadInput, match="sparsity"): TicketSpec(sparsity=float("nan"))
    with pytest.raises(BadInput, match="learning_rate"): TicketSpec(learning_rate=float("nan"))


def test_a_grid_reports_all_its_errors_at_once():
    with pytest.raises(BadInput) as error: expand(dict(grids=[dict(template="ticket", sparsity=[.5, 2.]), dict(template="tocket")]))
    assert "sparsity must be in" in str(error.value) and "did you mean 'ticket'" in str(error.value)


@pytest.mark.parametrize("text, message", [("a: [", "not valid YAML"), ("- 1", "a grid must be a mapping"), ("template: ticket\nsparsity: []", "the grid is empty"), ("", "a grid must be a mapping")])
def test_malformed_grid_files(tmp_path, text, message):
    (tmp_path/"grid.yaml").write_text(text)
    with pytest.raises(BadInput, match=message): read_grid(tmp_path/"grid.yaml")


def test_every_grid_in_the_repository_is_valid():
    from pathlib import Path
    grids = sorted((Path(__file__).parent.parent/"grids").glob("*.yaml"))
    assert grids and all(read_grid(path) for path in grids)


def test_importing_specs_is_light():
    "The command line answers at once: no torch, no transformers, no pandas"
    import subprocess, sys
    code = "import sys, lottery_nb.cli; print([m for m in ('torch', 'transformers', 'pandas', 'papermill', 'datasets') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_fields_of_every_template_are_plain():
    assert all(field.default is None or isinstance(field.default, (str, int, float, bool)) for kind in (RunSpec, TicketSpec) for field in fields(kind))
