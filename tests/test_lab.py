"""JupyterLab as a person meets it: a real browser opens README's command, runs a tutorial, labels maps, moves the explorer's slider."""
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from lottery_nb import labels
from lottery_nb.cli import main

ROOT = Path(__file__).resolve().parent.parent
SIZE = dict(width=1440, height=900)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync"]
HARMLESS = re.compile(r"favicon|Failed to load resource|AudioContext")   # the machine is offline; the page is not at fault


def browser_path():
    "A Chromium of the system; None where there is none"
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser():
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install lottery-nb[dev])")
    path = browser_path()
    if not path: pytest.skip("no Chromium on this machine (apt-get install chromium)")
    with sync.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=QUIET)
        yield found
        found.close()


@pytest.fixture(scope="module")
def shots(tmp_path_factory):
    "Where screenshots go"
    folder = Path(os.environ.get("LOTTERY_NB_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def readme_command():
    "The words behind README's `jupyter`"
    return shlex.split(re.search(r"`\.venv/bin/jupyter (lab [^`]+)`", (ROOT/"README.md").read_text())[1])


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "A copy of what README's command opens, so that nothing here is changed"
    folder = tmp_path_factory.mktemp("lab")
    for name in ("nbs", "README.md", "grids"):
        copy = shutil.copytree if (ROOT/name).is_dir() else shutil.copy
        copy(ROOT/name, folder/name)
    return folder


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def lab(home, browser, shared_runs):
    "JupyterLab, started as README says"
    port, token = free_port(), "test"
    quiet = home/".settings"/"@jupyterlab"/"apputils-extension"
    quiet.mkdir(parents=True)
    (quiet/"notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')   # else it asks, over the page
    env = os.environ | dict(LOTTERY_NB_RUNS=str(shared_runs), JUPYTER_CONFIG_DIR=str(home/".jupyter"), JUPYTERLAB_SETTINGS_DIR=str(home/".settings"),
                            JUPYTERLAB_WORKSPACES_DIR=str(home/".workspaces"))
    words = [sys.executable, "-m", "jupyterlab", *readme_command()[1:], "--no-browser", f"--port={port}", "--allow-root", f"--IdentityProvider.token={token}",
             "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with open(home/"server.log", "w") as log: server = subprocess.Popen(words, cwd=home, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(300):
            try: urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={token}", timeout=2); break
            except OSError: time.sleep(.2)
        else: pytest.fail((home/"server.log").read_text()[-2000:])
        yield f"http://127.0.0.1:{port}/lab/tree/{{}}?token={token}&reset"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)


@pytest.fixture
def page(browser):
    "A window of 1440 × 900; an error in its console fails the test"
    window = browser.new_page(viewport=SIZE)
    window.set_default_timeout(60_000)
    errors = []
    window.on("console", lambda said: errors.append(said.text) if said.type == "error" and not HARMLESS.search(said.text) else None)
    window.on("pageerror", lambda error: errors.append(str(error)))
    yield window
    window.close()
    assert errors == []


def run_all(page, url):
    "Open a notebook and run its cells"
    page.goto(url)
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    assert not page.locator(".jp-Dialog").count()                 # its kernel is known: nothing is asked
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()


def wait_idle(page, seconds):
    "Until no cell runs or waits"
    page.wait_for_function("() => ![...document.querySelectorAll('.jp-InputArea-prompt')].some(one => one.textContent.includes('*'))", timeout=1000*seconds)


@pytest.fixture(scope="module")
def annotation(home, tiny_model, tiny_data):
    out = home/"ann.jsonl"
    assert main(["annotate", "--model", str(tiny_model), "--task", str(tiny_data), "--maps", "6", "--shortest", "6", "--out", str(out), "--name", "ann"]) == 0
    return out


def test_maps_are_labelled_by_key_and_by_click(lab, page, annotation, shots):
    out, notebook = annotation, annotation.with_suffix(".ipynb")
    before = json.loads(notebook.read_text())["cells"]
    given = lambda: [record["label"] for record in labels.read_records(out)] if out.exists() else []
    root = page.locator(".annotate")
    done = lambda count: page.wait_for_selector(f".annotate[data-done='{count}']")
    run_all(page, lab.format("ann.ipynb"))
    done(0)
    for name in ("img.annotate-map", ".annotate-class >> nth=4", ".annotate-skip"):
        box = page.locator(name).bounding_box()
        assert box["y"] + box["height"] <= 900 and box["x"] + box["width"] <= 1440, name
    assert page.locator("img.annotate-map").evaluate("one => [one.naturalWidth, one.width]") == [400, 400]
    assert not page.locator(".jp-CodeCell .jp-Editor:visible").count()
    page.screenshot(path=shots/"annotation.png")
    root.press("d"), done(1)                                     # in a notebook d d deletes a cell, b adds one, m makes it text
    root.press("b"), done(2)
    page.locator(".annotate-class", has_text="vertical+diagonal").click(), done(3)
    page.keyboard.press("m"), done(4)
    page.keyboard.press("u"), done(3)
    page.keyboard.press("x"), page.keyboard.press("d"), done(4), page.locator(".annotate-undo").click(), done(3)
    assert given() == ["diagonal", "block", "vertical+diagonal"]
    page.keyboard.press("s")
    run_all(page, lab.format("ann.ipynb"))                       # a reload: everything is where it was
    done(3)
    for key, count in zip("hvb", (4, 5, 6)): page.locator(".annotate").press(key), done(count)
    assert given() == ["diagonal", "block", "vertical+diagonal", "heterogeneous", "vertical", "block"]
    page.wait_for_function("() => document.querySelector('.annotate-head').textContent.includes('all done')")
    assert page.locator(".jp-Notebook .jp-Cell").count() == len(before)
    page.keyboard.press("Control+s"), page.wait_for_timeout(500)
    after = json.loads(notebook.read_text())["cells"]
    assert [cell["source"] for cell in after] == [cell["source"] for cell in before]
    page.screenshot(path=shots/"annotation_done.png")


def test_a_second_person_sees_kappa_as_it_grows(lab, page, home, tiny_model, tiny_data, shots):
    "Of the maps that both have labelled, after each answer; the numbers are worked out by hand"
    first, second = home/"first.jsonl", home/"second.jsonl"
    words = ["annotate", "--model", str(tiny_model), "--task", str(tiny_data), "--maps", "6", "--shortest", "6"]
    assert main([*words, "--out", str(first), "--name", "ann"]) == 0
    ann = labels.Annotator(list(labels.json_lines(first.with_suffix(".maps.jsonl"))), first, "ann")
    for label in ("diagonal", "block", "vertical", "heterogeneous"): ann.answer(label)
    assert main([*words, "--out", str(second), "--name", "bob", "--beside", str(first)]) == 0
    said, press = page.locator(".annotate-said"), page.locator(".annotate").press

    def kappa(done, expected):
        page.wait_for_selector(f".annotate[data-done='{done}']")
        assert re.findall(r"kappa (\S+) on (\d) maps labelled by both", said.inner_text()) == expected

    run_all(page, lab.format("second.ipynb"))
    kappa(0, [])
    press("d"), press("b"), kappa(2, [("1.00", "2")])
    press("d"), kappa(3, [("0.50", "3")])          # (2/3 - 3/9) / (1 - 3/9): ann has d b v, bob d b d
    page.screenshot(path=shots/"annotation_second.png")
    press("u"), kappa(2, [("1.00", "2")])
    press("v"), press("h"), kappa(4, [("1.00", "4")])
    press("b"), kappa(5, [("1.00", "4")])          # ann has not labelled this one
    ann.answer("vertical"), ann.answer("block")    # while bob's page is open
    press("b"), kappa(6, [("0.77", "6")])          # (5/6 - 10/36) / (1 - 10/36): d b v h v b and d b v h b b
    assert [record["annotator"] for record in labels.read_records(second)] == ["bob"] * 6


@pytest.fixture(scope="module")
def tickets(home, tiny_model, tiny_data):
    from lottery_nb.running import run
    from lottery_nb.spec import TicketSpec
    common = dict(task=str(tiny_data), model=str(tiny_model), max_steps=4, batch_size=8, max_length=16)
    for method, sparsity in (("omp", .5), ("omp", .75), ("random", .5)): run(TicketSpec(**common, method=method, sparsity=sparsity), home/"tickets")
    assert main(["explore", str(home/"tickets")]) == 0
    return home/"tickets"


def test_the_explorers_slider_is_moved(lab, page, tickets, shots):
    run_all(page, lab.format("tickets/explorer.ipynb"))
    score = page.locator(".jp-OutputArea .widget-html", has_text="omp").first
    score.get_by_text("omp 50 %").wait_for()
    pictures = page.locator(".jp-OutputArea img.widget-image")
    page.wait_for_function("() => [...document.querySelectorAll('img.widget-image')].filter(one => one.naturalWidth > 50).length === 4")
    old = [pictures.nth(i).get_attribute("src") for i in range(4)]
    page.screenshot(path=shots/"explorer.png")
    page.locator(".widget-slider .noUi-handle").first.press("ArrowRight")
    score.get_by_text("omp 75 %").wait_for()
    page.wait_for_function("old => [...document.querySelectorAll('img.widget-image')].every((one, i) => one.src !== old[i] && one.naturalWidth > 50)", arg=old)
    sentence = page.locator(".widget-text input[type=text]").first
    now = pictures.nth(3).get_attribute("src")
    sentence.fill("the meal was poor"), sentence.press("Enter")
    page.wait_for_function("now => document.querySelectorAll('img.widget-image')[3].src !== now", arg=now)
    pictures.nth(3).scroll_into_view_if_needed()
    page.screenshot(path=shots/"explorer_moved.png")


def test_the_first_tutorial_runs_whole(lab, page, home, shots):
    path = home/readme_command()[-1]
    run_all(page, lab.format(path.relative_to(home)))
    page.wait_for_timeout(1000)
    wait_idle(page, 600)
    page.screenshot(path=shots/"tutorial_01.png")
    page.keyboard.press("Control+s"), page.wait_for_timeout(1500)
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in cells)
    assert not [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]


@pytest.mark.parametrize("words, said", [
    (["explore", "{empty}"], "has no tickets to explore; "), (["explore", "{none}"], "there is no folder "), (["explore", "{other}"], "has schema 99, this version reads"),
    (["annotate", "--out", "{empty}/a.jsonl", "--beside", "{empty}/b.jsonl"], "b.maps.jsonl is missing")])
def test_what_a_page_cannot_show_is_said_in_one_sentence(words, said, tmp_path, capsys):
    for name in ("empty", "other/run"): (tmp_path/name).mkdir(parents=True)
    (tmp_path/"other"/"run"/"result.json").write_text(json.dumps(dict(schema=99, id="a", template="ticket", spec={}, files={})))
    places = {name: str(tmp_path/name) for name in ("empty", "other", "none")}
    assert main([word.format(**places) for word in words]) == 2
    told = capsys.readouterr().err.strip()
    assert said in told and "\n" not in told


def test_a_port_in_use_and_no_display(tickets, monkeypatch, capsys):
    import webbrowser
    with socket.socket() as taken:
        taken.bind(("localhost", 0)), taken.listen()
        port = str(taken.getsockname()[1])
        monkeypatch.setattr(webbrowser, "get", lambda: None)
        assert main(["explore", str(tickets), "--open", "--port", port]) == 2
        assert f"port {port} is in use" in capsys.readouterr().err
    def none(): raise webbrowser.Error("could not locate runnable browser")
    monkeypatch.setattr(webbrowser, "get", none)
    assert main(["explore", str(tickets), "--open"]) == 2
    assert "no browser can be opened here" in capsys.readouterr().err
    assert main(["explore", str(tickets), "--port", "8899"]) == 2 and "port belongs to --open" in capsys.readouterr().err
