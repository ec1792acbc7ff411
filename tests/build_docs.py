"""The docs site: `python tests/build_docs.py [FOLDER]` makes FOLDER/site (default `_docs`) from the notebooks, the modules and the texts beside them."""
import ast
import base64
import hashlib
import html
import io
import json
import os
import re
import shutil
import sys
import tempfile
import tokenize
from difflib import get_close_matches
from pathlib import Path

from lottery_nb.report import with_mathml

ROOT = Path(__file__).resolve().parent.parent
DECADES = {"0": "Foundations", "1": "Weights and masks", "2": "Data, models, training", "3": "Methods", "4": "Attention, running, verdicts", "5": "Tables, figures, pages",
           "6": "Many runs"}
TEXTS = {"README.md": "start.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
HOME = "https://github.com/lottery-nb/lottery-nb/blob/main/"
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
CSS = """
.jp-RenderedHTMLCommon table { font-size: .68rem; display: block; overflow-x: auto }
.jupyter-wrapper .jp-OutputArea-output img, .gallery img { max-width: 100%; height: auto; background: white }
.jupyter-wrapper pre { font-size: .66rem !important; line-height: 1.4 !important }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .8rem }
.gallery figure { margin: 0; padding: .5rem; border: .05rem solid var(--md-default-fg-color--lightest); border-radius: .2rem }
.gallery figcaption { font-size: .62rem; margin: .3rem 0 0; max-width: none }
math[display="block"] { margin: .9em 0; overflow-x: auto; font-size: 1.1em }
.md-typeset table:not([class]) td { vertical-align: top }
.md-grid { max-width: 76rem }
"""


def read(path): return json.loads(Path(path).read_text(encoding="utf-8"))


def source(cell): return "".join(cell["source"])


def heading(path): return source(read(path)["cells"][0]).split("\n")[0].removeprefix("# ")


def notebooks(): return sorted(path for path in (ROOT/"nbs").rglob("*.ipynb") if not {".ipynb_checkpoints"} & set(path.parts) and path.parent.name in ("nbs", "tutorials", "reports", "runs"))


def placed(target, here):
    "A link of a notebook (`here`: its path in `nbs`), as its page has it: pages are HTML, other files lie in the repository"
    path, mark, place = target.partition("#")
    if re.match(r"[a-z]+:|/", path) or not path: return target
    at = os.path.normpath(os.path.join("nbs", os.path.dirname(here), path))
    page = TEXTS.get(at) or (at.removeprefix("nbs/") if at.endswith(".ipynb") else "")
    if at.endswith(".ipynb"): place = re.sub(r"[^\w-]", "", place).lower()   # as mkdocs names headings; JupyterLab keeps their letters
    return (os.path.relpath(re.sub(r"\.(ipynb|md)$", ".html", page), os.path.dirname(here) or ".") if page else HOME + at) + mark + place


def with_links(text, here):
    "A markdown text whose links lead to pages"
    lead = lambda found: found[0] if found[1] == BADGE else f"]({placed(found[1], here)})"
    return re.sub(r"\]\(([^)\s]+)\)", lead, text).replace(BADGE, os.path.relpath("assets/colab.svg", os.path.dirname(here) or "."))


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def lay_notebooks(pages):
    "Every notebook, with equations as MathML and links between pages, without what is only for the export"
    for path in notebooks():
        here, notebook = path.relative_to(ROOT/"nbs"), read(path)
        notebook["cells"] = [cell for cell in notebook["cells"] if not source(cell).startswith(("#| hide", "#| default_exp"))]
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown": cell["source"] = with_links(with_mathml(source(cell)), here.as_posix())
            else: cell["source"] = re.sub(r"\A(#\|.*\n)+", "", source(cell))
        write(pages/here, json.dumps(notebook))


def comments(text):
    "Line → the comment on it"
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def table(rows, *names):
    "A markdown table; a bar inside a cell is kept"
    cell = lambda value: str(value).replace("|", "&#124;").replace("\n", " ")
    return "\n".join(["| " + " | ".join(names) + " |", "|" + "---|"*len(names), *("| " + " | ".join(map(cell, row)) + " |" for row in rows)]) + "\n" if rows else ""


def code(node): return f"<code>{html.escape(ast.unparse(node))}</code>" if node is not None else ""


def arguments(node, said):
    "Parameters of a function, with what its docments say of them"
    own = node.args.posonlyargs + node.args.args
    usual = [None]*(len(own) - len(node.args.defaults)) + node.args.defaults
    rows = [(arg, value) for arg, value in zip(own, usual) if arg.arg not in ("self", "cls")] + list(zip(node.args.kwonlyargs, node.args.kw_defaults))
    starred = [("*" * number + arg.arg, arg) for number, arg in ((1, node.args.vararg), (2, node.args.kwarg)) if arg]
    told = [(f"<code>{arg.arg}</code>", code(arg.annotation), code(value), said.get(arg.lineno, "")) for arg, value in rows]
    told += [(f"<code>{name}</code>", code(arg.annotation), "", said.get(arg.lineno, "")) for name, arg in starred]
    closing = node.returns.end_lineno if node.returns is not None else 0
    return told + ([("returns", code(node.returns), "", said.get(closing, ""))] if node.returns is not None and said.get(closing) else [])


def about_function(node, said, level="##", prefix=""):
    "One function or method"
    words = [arg.arg for arg in node.args.posonlyargs + node.args.args + node.args.kwonlyargs if arg.arg not in ("self", "cls")]
    signature = f"{level} `{prefix}{node.name}({', '.join(words)})`\n\n"
    return signature + (ast.get_docstring(node) or "") + "\n\n" + table(arguments(node, said), "", "type", "default", "meaning") + "\n"


def about_class(node, said):
    "One class: its fields, then its public methods"
    fields = [(code(part.target), code(part.annotation), code(part.value), said.get(part.lineno, "")) for part in node.body if isinstance(part, ast.AnnAssign)]
    start = next((part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"), None)
    fields += arguments(start, said) if start else []
    methods = [part for part in node.body if isinstance(part, ast.FunctionDef) and not part.name.startswith("_")]
    return f"## `{node.name}`\n\n{ast.get_docstring(node) or ''}\n\n" + table(fields, "", "type", "default", "meaning") + "\n" + \
        "".join(about_function(part, said, "###", f"{node.name}.") for part in methods)


def about_value(node, said):
    "One constant"
    name, text = (node.targets[0] if isinstance(node, ast.Assign) else node.target).id, ast.unparse(node)
    return f"## `{name}`\n\n{said.get(node.lineno, '')}\n\n```python\n{text if len(text) < 600 else text[:600] + ' ...'}\n```\n\n"


def api_page(path):
    "What a module exports, from its source: names, docstrings, docments"
    text = path.read_text(encoding="utf-8")
    tree, said, public = ast.parse(text), comments(text), []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"): public.append(about_function(node, said))
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"): public.append(about_class(node, said))
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and not target.id.startswith("_"): public.append(about_value(node, said))
    notebook = re.search(r"File to edit: \.\./nbs/(.+)\.ipynb", text)
    return f"# {path.stem}\n\n{ast.get_docstring(tree) or ''}\n\nRead it with its equations and examples: [{notebook[1]}](../{notebook[1]}.html)\n\n" + "".join(public)


def modules():
    "Modules in reading order"
    found = {re.search(r"File to edit: \.\./nbs/(.+)\.ipynb", path.read_text())[1]: path for path in (ROOT/"lottery_nb").glob("[a-z]*.py")}
    return [found[name] for name in sorted(found)]


def lay_api(pages):
    for path in modules(): write(pages/"api"/f"{path.stem}.md", api_page(path))
    rows = [(f"[{path.stem}]({path.stem}.md)", (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]) for path in modules()]
    write(pages/"api"/"index.md", "# API\n\nEvery module, from the comments behind its parameters.\n\n" + table(rows, "module", "one line"))


def pictures(path):
    "Pictures among the outputs of a notebook: bytes and the last line of the cell that drew them"
    for cell in read(path)["cells"]:
        for output in cell.get("outputs", ()):
            if png := output.get("data", {}).get("image/png"):
                lines = [line for line in source(cell).split("\n") if line.strip()]
                yield base64.b64decode("".join(png)), lines[-1].rstrip("; ")


def lay_gallery(pages):
    "All figures of all notebooks, each a link to where it is made"
    parts = []
    for path in notebooks():
        here, figures = path.relative_to(ROOT/"nbs").with_suffix(".html").as_posix(), []
        for number, (png, words) in enumerate(pictures(path)):
            file = pages/"gallery"/f"{path.stem}-{number}.png"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(png)
            figures.append(f'<figure><a href="{here}"><img src="gallery/{file.name}" alt="{html.escape(words)}" loading="lazy"></a>'
                           f"<figcaption><code>{html.escape(words[:90])}</code></figcaption></figure>")
        if figures: parts.append(f'## {heading(path)}\n\n<div class="gallery">\n' + "\n".join(figures) + "\n</div>\n")
    write(pages/"gallery.md", "# Gallery\n\nEvery figure of the notebooks; a click leads to the cell that draws it.\n\n" + "\n".join(parts))


def lay_texts(pages):
    "README, CHANGELOG, CONTRIBUTING: their links are from the top folder"
    for name, page in TEXTS.items():
        write(pages/page, re.sub(r"\]\(([^)\s]+)\)", lambda found: f"]({placed('../' + found[1], page) if not re.match('[a-z]+:|#', found[1]) else found[1]})",
                                 (ROOT/name).read_text(encoding="utf-8")))


COLAB = ('<svg xmlns="http://www.w3.org/2000/svg" width="117" height="20"><rect width="117" height="20" rx="3" fill="#555"/><rect width="24" height="20" rx="3" fill="#e8710a"/>'
         '<text x="70" y="14" fill="#fff" text-anchor="middle" font-family="Verdana,sans-serif" font-size="11">Open in Colab</text></svg>')


def navigation():
    "Tabs and their pages, in reading order"
    group = lambda folder: [{heading(path): f"{folder}/{path.name}"} for path in notebooks() if path.parent.name == folder]
    library = {}
    for path in notebooks():
        if re.match(r"\d", path.name) and path.parent.name == "nbs": library.setdefault(DECADES[path.name[0]], []).append({heading(path): path.name})
    api = [{"All modules": "api/index.md"}] + [{path.stem: f"api/{path.stem}.md"} for path in modules()]
    return [{"Start": ["index.ipynb", {"Doors, methods, data": "start.md"}, {"Contributing": "contributing.md"}, {"Changelog": "changelog.md"}]}, {"Tutorials": group("tutorials")},
            {"Library": [{name: pages} for name, pages in library.items()]}, {"Reports": group("reports")}, {"Templates": group("runs")}, {"Gallery": "gallery.md"}, {"API": api}]


def lighter(site):
    "Styles that every notebook page repeats, once; equations of texts as MathML"
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        def moved(found):
            name = f"style-{hashlib.sha256(found[1].encode()).hexdigest()[:8]}.css"
            if not (site/"assets"/name).exists(): write(site/"assets"/name, found[1])
            return f'<link rel="stylesheet" href="{os.path.relpath(site/"assets"/name, page.parent)}">'
        text = re.sub(r"<style type=\"text/css\">(.{2000,}?)</style>", moved, text, flags=re.DOTALL)
        text = re.sub(r'<(span|div) class="arithmatex">(.+?)</\1>', lambda found: with_mathml(equation(html.unescape(found[2]))), text, flags=re.DOTALL)
        text = re.sub(r"<!-- Load mathjax -->.*?<!-- End of mathjax configuration -->", "", text, flags=re.DOTALL)
        page.write_text(with_places(text), encoding="utf-8")


def with_places(text):
    "A page whose table of contents leads to its headings, where equations and code in them made two names of one"
    there = set(re.findall(r'\bid="([^"]+)"', text))
    nearest = lambda found: f'href="#{next(iter(get_close_matches(found[1], there, 1, .5)), found[1])}" class="md-nav__link"'
    return re.sub(r'href="#([^"]+)" class="md-nav__link"', lambda found: found[0] if found[1] in there else nearest(found), text)


def equation(text): return re.sub(r"\\\((.+?)\\\)", r"$\1$", re.sub(r"\\\[(.+?)\\\]", r"$$\1$$", text, flags=re.DOTALL), flags=re.DOTALL)


def build(folder):
    "Lay the pages out and let mkdocs build them; the site appears whole or not at all"
    from mkdocs.commands.build import build as made
    from mkdocs.config import load_config
    with tempfile.TemporaryDirectory(dir=folder, prefix=".making-") as temp:
        pages, site = Path(temp)/"pages", Path(temp)/"site"
        for lay in (lay_notebooks, lay_api, lay_gallery, lay_texts): lay(pages)
        write(pages/"assets"/"site.css", CSS)
        write(pages/"assets"/"colab.svg", COLAB)
        made(load_config(str(ROOT/"mkdocs.yml"), docs_dir=str(pages), site_dir=str(site), nav=navigation()))
        lighter(site)
        shutil.rmtree(folder/"site", ignore_errors=True)
        site.rename(folder/"site")
    return folder/"site"


def main(words):
    folder = Path(words[0] if words else ROOT/"_docs")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        print(f"the site: {build(folder)/'index.html'}")
    except ImportError as error: return f"the docs need {error.name}: pip install lottery-nb[docs]"
    except OSError as error: return f"the docs cannot be written to {folder}: {error.strerror or error}"


if __name__ == "__main__": sys.exit(main(sys.argv[1:]))
