"""Style is a test, not an opinion."""
import ast
import csv
import json
import re
import statistics
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import dealt

ROOT = Path(__file__).resolve().parent.parent
MODULES = [p for p in sorted((ROOT/"lottery_nb").glob("*.py")) if not p.name.startswith("_")]
LIBRARY = sorted(ROOT.glob("nbs/[0-9]*.ipynb"))
ALL_NOTEBOOKS = sorted(p for p in ROOT.glob("nbs/**/*.ipynb") if ".ipynb_checkpoints" not in p.parts)
TEMPLATES = sorted(ROOT.glob("nbs/runs/*.ipynb"))
REPORTS = sorted(ROOT.glob("nbs/reports/*.ipynb"))
OVER_120 = 666     # lines over 120 columns, all modules; only falls
ORDER = {path.stem.split("_", 1)[1]: number for number, path in enumerate(LIBRARY)}


def name(path): return path.stem


def cells(path): return json.loads(path.read_text())["cells"]


def source(cell): return "".join(cell["source"])


def functions(path):
    "Every function of a module, with its name"
    return [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]


def length(node): return node.end_lineno - node.lineno + 1


def public(path):
    "Module-level public functions and the public methods of public classes"
    tree = ast.parse(path.read_text()).body
    nodes = [n for n in tree if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith("_")]
    methods = [m for c in nodes if isinstance(c, ast.ClassDef) for m in c.body if isinstance(m, ast.FunctionDef) and not m.name.startswith("_")]
    return [n for n in nodes if isinstance(n, ast.FunctionDef)] + methods


def test_functions_are_short():
    lengths = sorted(length(f) for path in MODULES for f in functions(path))
    assert statistics.median(lengths) <= 8
    assert lengths[int(.9*len(lengths))] <= 25


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_no_function_over_40_lines(path):
    assert [f"{f.name} ({length(f)})" for f in functions(path) if length(f) > 40] == []


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_public_functions_are_typed_and_documented(path):
    bare = [f.name for f in public(path) if not ast.get_docstring(f)]
    untyped = [f.name for f in public(path) for a in f.args.args + f.args.kwonlyargs if a.arg not in ("self", "cls") and a.annotation is None]
    assert (bare, untyped) == ([], [])


def module_functions(path):
    return [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]


@pytest.mark.parametrize("path", [p for p in MODULES if p.stem != "cli"], ids=name)
def test_every_parameter_has_a_docment(path):
    "The comment behind a parameter gives its meaning, shape and unit (the commands of `cli` carry it in their options)"
    lines = path.read_text().split("\n")
    bare = [f"{f.name}({a.arg})" for f in module_functions(path) for a in f.args.args + f.args.kwonlyargs if "#" not in lines[a.lineno - 1]]
    assert bare == []


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_data_flows_one_way(path):
    "A module imports only modules whose notebooks come before its own"
    found = [n.module for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom) and (n.level or (n.module or "").startswith("lottery_nb."))]
    imported = [module.removeprefix("lottery_nb.") for module in found if module]
    assert [other for other in imported if ORDER[other] >= ORDER[path.stem]] == []


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_no_star_imports_no_pickle(path):
    text = path.read_text()
    assert not re.search(r"import \*|\bpickle\b|torch\.save\(|weights_only=False", text)


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_one_exported_idea_per_cell(path):
    for cell in cells(path):
        if not source(cell).startswith("#| export"): continue
        defined = [n.name for n in ast.parse(source(cell)).body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith("_")]
        assert len(defined) <= 1, defined


@pytest.mark.parametrize("path", ALL_NOTEBOOKS, ids=name)
def test_title_cell(path):
    lines = [line for line in source(cells(path)[0]).split("\n") if line.strip()]
    assert lines[0].startswith("# ") and lines[1].startswith("> ")


@pytest.mark.parametrize("path", ALL_NOTEBOOKS, ids=name)
def test_notebook_is_small_and_clean(path):
    assert path.stat().st_size < 300_000
    for cell in cells(path):
        assert set(cell["metadata"]) <= {"tags"}
        assert cell["cell_type"] != "code" or cell["execution_count"] is None


def defines(cell): return source(cell).startswith("#| export") and re.search(r"^(def|class) [a-z A-Z]", source(cell), re.M)


def test_definitions_are_followed_by_examples():
    "At least nine in ten defining cells are followed within three cells by one that runs"
    followed = []
    for path in LIBRARY:
        body = cells(path)
        for i, cell in enumerate(body):
            if cell["cell_type"] == "code" and defines(cell):
                followed.append(any(c["cell_type"] == "code" and not source(c).startswith("#| export") for c in body[i + 1:i + 4]))
    assert sum(followed)/len(followed) >= .9


def test_examples_end_with_a_value_not_a_print():
    prints = [f"{path.name}: {source(c).splitlines()[-1]}" for path in LIBRARY for c in cells(path)
              if c["cell_type"] == "code" and source(c).strip() and source(c).splitlines()[-1].startswith("print(")]
    assert prints == []


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_import_cells_import_only(path):
    for cell in cells(path):
        if cell["cell_type"] != "code" or source(cell).startswith("%"): continue
        kinds = {isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(source(cell)).body}
        assert kinds != {True, False}, source(cell)


METHOD_NOTEBOOKS = [p for p in LIBRARY if 4 <= int(p.stem[:2]) <= 17 and p.stem[3:] in ("select", "magnitude", "tamt", "gates", "structured", "attention", "patterns")]


@pytest.mark.parametrize("path", METHOD_NOTEBOOKS, ids=name)
def test_equation_before_code(path):
    body = cells(path)
    first = next(i for i, c in enumerate(body) if c["cell_type"] == "code" and defines(c))
    assert any("$" in source(c) for c in body[:first] if c["cell_type"] == "markdown")


@pytest.mark.parametrize("path", TEMPLATES, ids=name)
def test_templates(path):
    "One parameters cell, no logic, at most twelve cells"
    body = cells(path)
    assert sum("parameters" in c["metadata"].get("tags", []) for c in body) == 1
    assert len(body) <= 12
    assert not any(re.search(r"^\s*(def|class|for|while|if) ", source(c), re.M) for c in body if c["cell_type"] == "code")


@pytest.mark.parametrize("path", TEMPLATES, ids=name)
def test_parameters_mirror_the_spec(path):
    "Same names, same defaults, same meaning as the fields of the template's spec"
    from dataclasses import fields
    from lottery_nb.cli import field_help
    from lottery_nb.spec import SPECS
    kind = SPECS[path.stem]
    cell = next(source(c) for c in cells(path) if "parameters" in c["metadata"].get("tags", []))
    values = {}
    exec(cell, values)
    assert {f.name: f.default for f in fields(kind)} == {f.name: values[f.name] for f in fields(kind)}
    written = dict(re.findall(r"^(\w+): \w+ = [^#\n]*# (.+)$", cell, re.M))
    assert written == field_help(kind)


@pytest.mark.parametrize("path", REPORTS, ids=name)
def test_a_report_is_calls(path):
    "At most fifteen code cells, each imports, or one call and one display; what they compute is in the modules of the pages"
    code = [source(c) for c in cells(path) if c["cell_type"] == "code"]
    logic = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.For, ast.While, ast.If, ast.IfExp, ast.With, ast.Try, ast.comprehension)
    assert len(code) <= 15
    assert [text for text in code if any(isinstance(node, logic) for node in ast.walk(ast.parse(text)))] == []
    assert [text for text in code if sum(isinstance(node, ast.Expr) for node in ast.parse(text).body) > 1] == []


def exports(path):
    "Public names of a module"
    nodes = [n.value for n in ast.parse(path.read_text()).body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"]
    return ast.literal_eval(nodes[0]) if nodes else []


def test_a_public_name_means_one_thing():
    homes = {}
    for path in MODULES:
        for public_name in exports(path): homes.setdefault(public_name, []).append(path.stem)
    assert {public_name: where for public_name, where in homes.items() if len(where) > 1} == {}


def lines_over(width):
    "Module → how many of its lines are wider"
    return {path.stem: sum(len(line) > width for line in path.read_text().split("\n")) for path in MODULES}


def test_no_line_over_160_columns():
    assert {module: count for module, count in lines_over(160).items() if count} == {}


def test_lines_over_120_columns_only_fall():
    assert sum(lines_over(120).values()) <= OVER_120


def test_notebook_numbers_are_unique():
    numbers = [path.stem.split("_")[0] for path in LIBRARY]
    assert len(set(numbers)) == len(numbers)


def test_most_definitions_are_followed_at_once_by_an_example():
    "Seven in ten defining cells: the very next code cell runs"
    at_once = []
    for path in LIBRARY:
        code = [c for c in cells(path) if c["cell_type"] == "code"]
        at_once += [not source(after).startswith("#| export") for cell, after in zip(code, [*code[1:], None]) if defines(cell) and after]
    assert sum(at_once)/len(at_once) >= .7


def purpose(path): return [line for line in source(cells(path)[0]).split("\n") if line.strip()][1].removeprefix("> ")


def test_the_index_is_true():
    "Every notebook once, in reading order, with its own purpose line"
    told = dict(re.findall(r"^\| `([\w/]+)` \| (.*) \|$", "\n".join(source(c) for c in cells(ROOT/"nbs"/"index.ipynb") if c["cell_type"] == "markdown"), re.M))
    there = [*LIBRARY, *sorted(ROOT.glob("nbs/tutorials/[0-9]*.ipynb")), *REPORTS]
    assert list(told.items()) == [(path.relative_to(ROOT/"nbs").with_suffix("").as_posix(), purpose(path)) for path in there]


def test_notebooks_are_called_by_their_names():
    "A mention such as `41_patterns` in text names a notebook that exists"
    known = {path.stem for path in ALL_NOTEBOOKS}
    texts = {path.name: "\n".join(source(c) for c in cells(path) if c["cell_type"] == "markdown") for path in ALL_NOTEBOOKS}
    texts["README.md"] = (ROOT/"README.md").read_text()
    assert {(where, word) for where, text in texts.items() for word in re.findall(r"\b(\d\d_[a-z_0-9]+)", text) if word not in known} == set()


@pytest.mark.parametrize("path", sorted((ROOT/"grids").glob("*.yaml")), ids=name)
def test_grids_name_no_folder_that_a_user_lacks(path):
    code = re.sub(r"#.*", "", path.read_text())
    assert re.findall(r"(?:model|data_dir|text|published): (?:&\w+ )?[\"']?([./~][^\s,\"'}]*)", code) == []


def test_long_tests_are_dealt_to_the_heads_of_equal_parts():
    with open(ROOT/"tests"/"seconds.csv") as file: names = [row["test"] for row in csv.DictReader(file)]
    assert [name for name in names if not (ROOT/"tests"/name.split("::")[0]).exists()] == [] and len(set(names)) == len(names)
    short = [f"test_{letter}.py::test_{number}" for letter in "xyz" for number in range(40)]
    items = [SimpleNamespace(nodeid=f"tests/{name}", name=name.split("::")[-1]) for name in [*short, *(name if "::" in name else f"{name}::test_it" for name in reversed(names))]]
    order = dealt(items, 2)
    assert sorted(item.nodeid for item in order) == sorted(item.nodeid for item in items)
    first, second = (order[at].nodeid.removeprefix("tests/").removesuffix("::test_it") for at in (0, len(items)//2))
    assert [first, second] == names[:2]
