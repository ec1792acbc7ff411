"""The docs site, whole, from a file system: links, equations, API, figures; and the texts beside it."""
import ast
import html
import json
import re
from pathlib import Path

import build_docs
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent

TUTORIALS = sorted(ROOT.glob("nbs/tutorials/[0-9]*.ipynb"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs_jupyter", reason="mkdocs-jupyter is not installed (pip install lottery-nb[docs])")
    return build_docs.build(tmp_path_factory.mktemp("docs"))


@pytest.fixture(scope="module")
def pages(site): return {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html") if path.name != "404.html"}


def prose(text):
    "A page without its code"
    return re.sub(r'<div class="clipboard-copy-txt".*?</div>', "", re.sub(r"<(script|style|pre|code)\b.*?</\1>", "", text, flags=re.S), flags=re.S)


def test_every_internal_link_leads_to_a_page_and_a_place(site, pages):
    places = {path: set(re.findall(r'\b(?:id|name)="([^"]+)"', text)) for path, text in pages.items()}
    broken = []
    for path, text in pages.items():
        for target in map(html.unescape, re.findall(r'\b(?:href|src)="([^"]*)"', prose(text))):
            if re.match(r"[a-z]+:|//", target) or target in ("", ".", ".."): continue
            file, _, place = target.partition("#")
            there = (path.parent/file).resolve() if file else path
            if not there.exists() or (place and there in places and place not in places[there]):
                broken.append(f"{path.relative_to(site)}: {target}")
    assert broken == []


def test_nothing_is_fetched_from_elsewhere(pages):
    fetched = {found for text in pages.values() for found in re.findall(r'<(?:script|img|iframe|source)[^>]+src="(?:https?:)?//[^"]+|<link[^>]+href="https?://[^"]+', text) if "canonical" not in found}
    assert fetched == set()


def test_every_notebook_and_every_module_is_a_page(site):
    notebooks = [path.relative_to(ROOT/"nbs").with_suffix(".html") for path in ROOT.glob("nbs/**/*.ipynb") if ".ipynb_checkpoints" not in path.parts]
    modules = [Path("api", path.name).with_suffix(".html") for path in build_docs.modules()]
    assert len(notebooks) > 50 and [path for path in notebooks + modules if not (site/path).exists()] == []


def test_equations_are_drawn_without_a_script(site, pages):
    told = [text for path in build_docs.notebooks() for cell in build_docs.read(path)["cells"] if cell["cell_type"] == "markdown" for text in re.findall(r"\$\$.+?\$\$", build_docs.source(cell), re.S)]
    assert sum(text.count('display="block"') for text in pages.values()) >= len(told) > 20
    assert not any(re.search(r"mathjax|katex", text, re.I) for text in pages.values())
    assert not any(re.search(r"\$\$[^$<]+\$\$|\\\(", prose(text)) for text in pages.values())


@pytest.mark.parametrize("path", build_docs.modules(), ids=lambda path: path.stem)
def test_the_api_says_what_the_docments_say(path):
    "Every public function and class, and of every parameter its comment"
    page = html.unescape(build_docs.api_page(path))
    public = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")]
    lines = path.read_text().split("\n")
    for node in public:
        assert re.search(rf"^## `{node.name}\b", page, re.M)
        for arg in node.args.args if isinstance(node, ast.FunctionDef) else ():
            if told := re.match(rf"    {arg.arg}\b.*?,\s+# (.+)", lines[arg.lineno - 1]): assert told[1].strip() in page


def test_the_gallery_has_every_figure(site, pages):
    drawn = sum(len(list(build_docs.pictures(path))) for path in build_docs.notebooks())
    assert pages[site/"gallery.html"].count("<figure>") == drawn > 20


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path/"file").write_text("")
    said = build_docs.main([str(tmp_path/"file"/"docs")])
    assert said.startswith(f"the docs cannot be written to {tmp_path}/file/docs: ") and "\n" not in said
    assert list(tmp_path.iterdir()) == [tmp_path/"file"]


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorials_open_in_colab(path):
    first = build_docs.source(json.loads(path.read_text())["cells"][0])
    assert f"](https://colab.research.google.com/github/lottery-nb/lottery-nb/blob/main/{path.relative_to(ROOT)})" in first


def test_recipes_name_what_is_there():
    text = (ROOT/"CONTRIBUTING.md").read_text()
    assert [name for name in re.findall(r"\b(?:nbs|tests|lottery_nb)/[\w/]+\.(?:ipynb|py|csv)", text) if not (ROOT/name).exists()] == []
    from lottery_nb import language, methods, scores, spec, weights
    assert [name for module, names in ((methods, "METHODS one_shot"), (spec, "READS"), (scores, "SCORES"), (weights, "ARCHITECTURES BERT"), (language, "ROWS"))
            for name in names.split() if not (hasattr(module, name) and name in text)] == []


def test_each_code_is_explained_once():
    "D and B numbers of all notebooks stand in the tutorial's table, each in one row"
    rows = re.findall(r"^\| ([DB]\d+) \| [^|]+ \|[^|]*\| [^|]{20,} \|$", "\n".join(map(build_docs.source, build_docs.read(ROOT/"nbs/tutorials/06_paper_versus_code.ipynb")["cells"])), re.M)
    assert len(rows) == len(set(rows)) == 31
    used = {code for path in build_docs.notebooks() for cell in build_docs.read(path)["cells"] for code in re.findall(r"\(?\b([DB]\d{1,2})\b(?=\)|,|;|:| ·)", build_docs.source(cell))}
    assert used <= set(rows), used - set(rows)


@pytest.mark.parametrize("name", [".github/workflows/test.yml", ".github/workflows/docs.yml", ".pre-commit-config.yaml", "CITATION.cff", "mkdocs.yml"])
def test_what_others_read_is_yaml(name): assert isinstance(yaml.safe_load((ROOT/name).read_text()), dict)


def test_the_citation_is_complete():
    cited = yaml.safe_load((ROOT/"CITATION.cff").read_text())
    assert [len(paper["authors"]) for paper in cited["references"]] == [7, 7, 3]
    assert all({"family-names", "given-names"} == set(author) for paper in cited["references"] for author in paper["authors"])
    assert cited["version"] == re.search(r"^version = (.+)$", (ROOT/"settings.ini").read_text(), re.M)[1]


def test_screenshots_are_kept_where_they_are_taken():
    steps = yaml.safe_load((ROOT/".github/workflows/test.yml").read_text())["jobs"]["test"]["steps"]
    taken = next(step["env"]["LOTTERY_NB_SCREENSHOTS"] for step in steps if step.get("run") == ".ci/run")
    assert taken == next(step["with"]["path"] for step in steps if "upload-artifact" in step.get("uses", ""))
