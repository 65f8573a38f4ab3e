"""The lessons in a real JupyterLab, operated in headless Chromium.

What `test_browser.py` and `tools/film.py` work with.
"""

import base64
import contextlib
import json
import pickle
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import requests
from jupyter_client import BlockingKernelClient, find_connection_file
from playwright.sync_api import TimeoutError as TooLate

from crc_helpers import data
from crc_helpers.course.settings import lesson_files, parameters_of, read_settings
from crc_helpers.runs import ROOT

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
TOKEN = "course"
# How large a file may be uploaded, as `make lab` says it.
LIMIT = re.search(
    r"--ServerApp.tornado_settings='(.*)'", (ROOT / "Makefile").read_text(encoding="utf-8")
)
TILES = {"n": 160, "seed": 0, "scheme": "auto", "test": 0.35, "validation": 0.15}
# JupyterLab would build only what is in view, and ask whether it may fetch news.
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none", "autoStartDefaultKernel": True},
    "apputils-extension/notification": {"fetchNews": "false"},
}


HASH = """async p => {
  const bytes = await (await fetch(p.src)).arrayBuffer()
  return Array.from(new Uint8Array(await crypto.subtle.digest("SHA-1", bytes))).join()
}"""
PICTURE = "img.picture:not(.strip img)"  # of an explorer
# The innermost box around a control that also holds a picture is its explorer.
EXPLORER = f"""control => {{
  let box = control.parentElement
  while (!box.querySelector("{PICTURE}")) box = box.parentElement
  return box
}}"""
# Milliseconds from the first thing done to a control to the next picture on the screen that is
# another: one still on its way from what was done before is drawn again the same, and is not it.
WATCH = f"""(picture, before) => {{
  window.answered = new Promise(resolve => {{
    let start
    const began = () => start ??= performance.now()
    for (const kind of ["keydown", "click", "change"])
      document.addEventListener(kind, began, {{capture: true, once: true}})
    picture.addEventListener("load", async function loaded() {{
      const now = performance.now()
      if (await ({HASH})(picture) == before) return
      picture.removeEventListener("load", loaded)
      resolve(now - start)
    }})
  }})
}}"""
WAIT = "limit => Promise.race([answered, new Promise(done => setTimeout(done, limit, null))])"


def small_lessons(folder: Path) -> None:
    """Copy the lessons, each with a run of its own in which few tiles and shipped weights lie.

    So that every lesson can be opened alone, and what trains, trains for one epoch.
    """
    settings = read_settings("ci", [], {n for f in lesson_files() for n in parameters_of(f)})
    tiles = data.load_tiles("synthetic", n=TILES["n"], seed=TILES["seed"])
    parts = data.split(tiles, TILES["scheme"], test=TILES["test"],
                       validation=TILES["validation"], seed=TILES["seed"])  # fmt: skip
    shutil.copytree(ROOT / "figures", folder / "figures")
    for file in lesson_files():
        run = folder / f"run {file.name[:2]}"
        run.mkdir()
        data.remember(run, tiles, parts, root=None, classes=None, **TILES)
        for weights in (ROOT / "weights").glob("*.safetensors"):
            shutil.copy(weights, run)
        book, known = nbformat.read(file, as_version=4), parameters_of(file)
        given = settings | {"RUN": str(run), "START_FROM": "run"}
        for cell in book.cells:
            if "parameters" in cell.metadata.get("tags", []):
                lines = [f"{n} = {v!r}" for n, v in given.items() if n in known]
                cell.source += "\n" + "\n".join(lines)
            if cell.cell_type == "markdown":  # the lessons lie a folder higher here
                cell.source = cell.source.replace("](../figures/", "](figures/")
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
                cell.metadata.pop("jupyter", None)  # a folded cell shows no sign of having run
        nbformat.write(book, folder / file.name)


@contextlib.contextmanager
def jupyterlab(folder: Path) -> Iterator[str]:
    """Serve a folder, and yield the address."""
    for name, content in SETTINGS.items():
        file = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(content), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", f"--port={port}", "--allow-root",
               f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={folder}",
               f"--ServerApp.tornado_settings={LIMIT[1]}",
               f"--LabApp.user_settings_dir={folder / 'settings'}"]  # fmt: skip
    with open(folder / "server.log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                requests.get(f"{address}/api", timeout=1)
                break
            except requests.RequestException:
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(30)


def ask(address: str, what: str, method: str = "GET", **body: object) -> requests.Response:
    """Ask the server's interface something."""
    header = {"Authorization": f"token {TOKEN}"}
    return requests.request(method, f"{address}/api/{what}", headers=header, json=body, timeout=60)


def stop_kernels(address: str) -> None:
    """End what open lessons compute: their memory is wanted by the next."""
    for kernel in ask(address, "kernels").json():
        ask(address, f"kernels/{kernel['id']}", "DELETE")


def connect(kernel: str) -> BlockingKernelClient:
    """A client of a kernel, once that answers."""
    client = BlockingKernelClient(connection_file=find_connection_file(kernel))
    client.load_connection_file()
    client.start_channels()
    client.kernel_info(reply=True, timeout=90)
    return client


def evaluate(address: str, expression: str) -> object:
    """What an expression is in the one kernel that runs; anything that can be pickled."""
    (kernel,) = ask(address, "kernels").json()
    client, said = connect(kernel["id"]), []
    reply = client.execute_interactive(
        "import base64, gc, pickle\n"
        f"print(base64.b64encode(pickle.dumps({expression})).decode())",
        store_history=False, timeout=120,
        output_hook=lambda message: said.append(message["content"].get("text", "")),
    )  # fmt: skip
    client.stop_channels()
    assert reply["content"]["status"] == "ok", reply["content"]
    return pickle.loads(base64.b64decode("".join(said)))


def open_lesson(page, address: str, number: str) -> None:
    """Open a lesson, run all of its cells, and wait for the end."""
    open_notebook(page, address, next(f.name for f in lesson_files(number)))


def open_notebook(page, address: str, name: str) -> None:
    """Open a notebook of the folder, run all of its cells, and wait for the end.

    Its kernel is started first: what JupyterLab is told while it starts one, is sometimes dropped.
    """
    kernel = {"name": "python3"}
    session = ask(address, "sessions", "POST", path=name, name=name, type="notebook", kernel=kernel)
    # The server calls a kernel "starting" until somebody asks it something.
    connect(session.json()["kernel"]["id"]).stop_channels()
    place = f"{address}/lab/workspaces/w{name[:2]}/tree/{name}?token={TOKEN}"
    page.goto(place, timeout=90_000)
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=90_000)
    idle = '.jp-NotebookPanel .jp-Notebook-ExecutionIndicator[data-status="idle"]'
    page.wait_for_selector(idle, timeout=90_000)
    page.wait_for_timeout(2000)
    for _ in range(3):
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).first.click()
        with contextlib.suppress(TooLate):
            page.wait_for_function(
                """() => [...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")]
                         .some(prompt => /[*\\d]/.test(prompt.textContent))""",
                timeout=20_000,
            )
            break
    page.wait_for_function(
        """() => {
          const prompts = [...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")]
          const failed = document.querySelector(".jp-RenderedText[data-mime-type*=error]")
          return failed || prompts.every(p => /\\[\\d+\\]/.test(p.textContent))
        }""",
        timeout=420_000,
    )


def pictures(page) -> list:
    """Every explorer's picture."""
    return page.locator(PICTURE).all()


def unfold(page) -> None:
    """Open all that explorers have folded."""
    closed = ".jupyter-widget-Collapse:not(.jupyter-widget-Collapse-open) > *:first-child"
    page.locator(closed).evaluate_all("headers => headers.forEach(header => header.click())")


def whole(picture):
    """All of an explorer, its controls and its picture."""
    return picture.locator("xpath=ancestor::*[contains(@class,'jp-OutputArea-output')][1]")


def describe(control) -> str:
    """The words beside a control."""
    row = "xpath=ancestor::*[contains(@class,'widget-inline-hbox')][1]"
    return control.locator(row).inner_text().split("\n")[0]


def control(page, words: str):
    """The first slider or list with these words beside it."""
    controls = page.locator(".noUi-handle, .widget-dropdown select").all()
    return next(c for c in controls if describe(c) == words)


def quiet(page) -> None:
    """Wait until no explorer draws."""
    page.wait_for_function(
        """() => ![...document.querySelectorAll(".widget-label")]
                 .some(label => label.textContent == "drawing …")"""
    )


def timed(page, control, act, limit: int = 30_000) -> tuple:
    """Do something to a control; milliseconds until its explorer's picture is another, and the box.

    None for the milliseconds if it is the same after `limit` of them.
    """
    box = control.evaluate_handle(EXPLORER)
    picture = box.query_selector(PICTURE)
    picture.evaluate(WATCH, picture.evaluate(HASH))
    act()
    milliseconds = page.evaluate(WAIT, limit)
    quiet(page)
    return milliseconds, box
