"""Specs: ids that never change, validation that names the field, grids."""
from dataclasses import asdict, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lottery_nb.files import BadInput
from lottery_nb.grid import expand, read_grid
from lottery_nb.names import TASKS
from lottery_nb.spec import CHOICES, READS, RunSpec, TicketSpec, make_spec, parse_value

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
                                           pool=st.sampled_from(CHOICES["pool"]), model=st.sampled_from(["micro", "bert-base-uncased"]), epochs=st.none() | st.floats(.1, 9))).map(
    lambda values: {name: value for name, value in values.items() if name != "sparsity" or "sparsity" in READS[values["method"]]}
    | ({"mask": "my/mask.pt"} if values["method"] == "given" else {}))


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
       (dict(seed=2**32), "seed must be at most 4294967295, got 4294967296"), (dict(seed=None), "seed must be int, got None"), (dict(seed=True), "seed must be int, got True"),
       (dict(seed=10**5000), "seed must be a finite number below"), (dict(epochs=float("inf")), "epochs must be a finite number"), (dict(epochs=1e6), "epochs must be at most 10000"),
       (dict(epochs=10**400), "epochs must be a finite number"), (dict(max_steps=float("nan")), "max_steps must be a finite number"), (dict(warmup=5), "warmup must be at most 1, got 5"),
       (dict(dropout=1.5), r"dropout must be in \[0, 1\), got 1.5"), (dict(dropout=1), "dropout must be in"), (dict(step=1e-9), r"step must be in \[0.001, 1\), got 1e-09"),
       (dict(learning_rate=1e3), "learning_rate must be at most 10"), (dict(batch_size=10**12), "batch_size must be at most"), (dict(mask_seed=-1, method="omp"), "mask_seed"),
       (dict(model=None), "model must be str, got None"), (dict(method=["omp"]), "method must be str"), (dict(method={}), "method must be str"), (dict(sparsity="x", method="tamt-mlm"), "sparsity must be float"),
       (dict(model="a\0b"), "model must be text without control characters"), (dict(text="\ud800"), "text must be text"), (dict(task="x" * 10**6), "task must be one of"),
       (dict(epochs=True), "epochs must be float"), (dict(scope="layer"), "scope must be one of global, matrix, erk or N:M"),
       (dict(scope="2:4"), "scope 2:4 keeps 2 of every 4 weights, so sparsity must be 0.5, got 0.7"), (dict(scope="0:4"), "scope 0:4 must keep at least 1"),
       (dict(score_examples=0), "score_examples must be at least 1"), (dict(score_at="start"), "score_at must be one of"), (dict(movement="firm"), "movement must be one of hard, soft"),
       (dict(round_steps=0), "round_steps must be at least 1"), (dict(batches="sorted"), "batches must be one of shuffled, length")]


@pytest.mark.parametrize("values, message", BAD, ids=[f"{number}-{next(iter(values))}" for number, (values, _) in enumerate(BAD)])
def test_bad_values_are_named(values, message):
    with pytest.raises(BadInput, match=message) as error: TicketSpec(**values)
    assert len(str(error.value)) < 500


def test_the_ends_of_the_ranges_are_allowed():
    assert TicketSpec(seed=2**32 - 1, warmup=1, dropout=0, step=.001, sparsity=0, rewind=None).seed == 2**32 - 1


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


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(f"{one}: &{one} [{', '.join(9 * ['*' + before])}]\n" for before, one in zip("abcdefgh", "bcdefghi"))
MERGED = "a: &a {x: 1, y: 2}\n" + "".join(f"{one}: &{one} {{<<: [{', '.join(9 * ['*' + before])}]}}\n" for before, one in zip("abcdefgh", "bcdefghi"))
HOSTILE = {"bomb": (BOMB, "once its aliases are written out"), "merged": (MERGED, "once its aliases are written out"), "itself": ("seed: &a [*a]", "contains itself"),
           "deep list": ("[" * 9999, "nested too deep"), "deep mapping": ("{a: " * 9999, "nested too deep"), "nested": ("a: " + "[" * 60 + "]" * 60, "nested too deep"), "inf": ("epochs: .inf", "epochs must be a finite number"),
           "nan": ("sparsity: .nan", "sparsity must be a finite number"), "null": ("seed: null", "seed must be int, got None"), "all null": ("task:\nmodel:\nseed:", "must be"), "date": ("seed: 2026-01-01", "seed must be int"),
           "no date": ("seed: 2026-99-99", "not valid YAML"), "no time": ("seed: !!timestamp x", "not valid YAML"), "no bool": ("seed: !!bool x", "not valid YAML"), "no int": ("seed: !!int ''", "not valid YAML"),
           "digits": ("seed: " + "9" * 9999, "not valid YAML"), "hex": ("seed: 0x" + "f" * 9999, "seed must be a finite number"), "object": ("seed: !!python/object/apply:os.system [ls]", "not valid YAML"),
           "list as key": ("? [a, b]\n: c", "not valid YAML"), "number as key": ("1: x", "no field 1"), "no key": ("null: x", "no field None"), "many": (f"seed: {list(range(200))}\nmask_seed: {list(range(200))}\n", "asks for 40,000 runs"),
           "set": ("seed: !!set {1, 2}", "seed must be int"), "two": ("seed: 1\n---\nseed: 2", "not valid YAML"), "surrogate": ('model: "\\ud800"', "model must be text"), "zero": ('model: "a\\0b"', "model must be text"),
           "long": ("? " + "x" * 10**5 + "\n: 1", "no field"), "large": ("#" * 2_000_000, "larger than 1 MB"), "bytes": ("\x00", "not valid YAML"), "lists": ("seed: [[1, 2], [3]]", "seed must be int")}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_grid_files_are_one_short_answer(name, tmp_path):
    import time
    text, message = HOSTILE[name]
    (tmp_path/"grid.yaml").write_text(text)
    begun = time.time()
    with pytest.raises(BadInput, match=message) as error: read_grid(tmp_path/"grid.yaml")
    assert time.time() - begun < 5 and len(str(error.value)) < 3000


def test_a_grid_that_is_a_folder_or_no_text_is_named(tmp_path):
    (tmp_path/"latin.yaml").write_bytes(b"task: caf\xe9")
    for path in (tmp_path, tmp_path/"latin.yaml", tmp_path/"none.yaml"):
        with pytest.raises(BadInput, match=str(path)): read_grid(path)


def test_every_grid_in_the_repository_is_valid(grid_variables):
    from pathlib import Path
    grids = sorted((Path(__file__).parent.parent/"grids").glob("*.yaml"))
    assert grids and all(read_grid(path) for path in grids)


def test_importing_specs_is_light():
    "The command line answers at once: no torch, no transformers, no pandas"
    import subprocess
    import sys
    code = "import sys, lottery_nb.cli; print([m for m in ('torch', 'transformers', 'pandas', 'papermill', 'datasets') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_fields_of_every_template_are_plain():
    assert all(field.default is None or isinstance(field.default, (str, int, float, bool)) for kind in (RunSpec, TicketSpec) for field in fields(kind))
