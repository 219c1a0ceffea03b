"""What the documentation shows is run: the quickstart, the Python blocks, the notebooks, the site in a browser.

One toy study is trained by the commands of the quickstart, and everything else looks at it.
"""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])
NOTEBOOKS = sorted(path.stem for path in ROOT.glob("notebooks/*.ipynb"))
BLOCK = re.compile(
    r"^(?P<excuse><!-- not run: .+? -->\n)?```(?P<language>[^\n]*)\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE
)
TOY = (
    "--regime overload --seeds 1 --workers 1 --N 16 --object-size 48 --n-lines 20 "
    "--fno-width 4 --fno-modes 3 --fno-blocks 2 --max-steps 6 --eval-every 3"
)
QUIET = ("python", "text", "toml", "yaml", "{eval-rst}", "{toctree}")
SMALL = {"fno_width": 4, "fno_modes": 3, "fno_blocks": 2, "max_steps": 4, "eval_every": 2, "seeds": 1, "workers": 1}
NARROW, WIDE = 390, 1440


def blocks(page: Path) -> Iterator[re.Match[str]]:
    """The fenced blocks of a page, those that Sphinx makes something of left out."""
    return BLOCK.finditer(page.read_text(encoding="utf-8"))


def python_blocks() -> list[tuple[str, str]]:
    return [
        (page.name, block["code"])
        for page in PAGES
        for block in blocks(page)
        if block["language"] == "python" and not block["excuse"]
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_a_block_is_run_or_says_why_not(page: Path) -> None:
    """Python is run below; of the shell's lines those of the quickstart, the others are checked in test_docs.py."""
    for block in blocks(page):
        lines = block["code"].replace("\\\n", " ").splitlines()
        ours = all(line.startswith("python -m study.") for line in lines)
        assert block["excuse"] or block["language"] in QUIET or ours, block["code"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a ``python`` that makes studies small."""
    folder = tmp_path_factory.mktemp("newcomer")
    python = folder / "bin" / "python"
    python.parent.mkdir()
    small = f'case "$*" in *study.shootout*smoke*) set -- "$@" {TOY};; esac'
    python.write_text(f'#!/bin/sh\n{small}\nexec "{sys.executable}" "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return folder


def run(command: list[str], folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
    environment |= {
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "OMP_NUM_THREADS": "1",
        **more,
    }
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def newcomer(place: Path) -> Path:
    """Where the quickstart's commands were typed, one after the other."""
    for block in blocks(ROOT / "docs" / "quickstart.md"):
        if not block["excuse"] and "--preset real" not in block["code"]:  # that study is trained by a notebook
            done = run(["sh", "-e", "-c", block["code"]], place)
            assert done.returncode == 0, (block["code"], done.stderr)
            (place / "said.txt").write_text(done.stdout)
    return place


def test_the_quickstart_leads_to_a_report_and_to_the_next_command(newcomer: Path) -> None:
    assert (newcomer / "results" / "smoke" / "report.html").exists()
    assert (newcomer / "example.cxi.png").exists()
    last = (newcomer / "said.txt").read_text().splitlines()[-1].partition("python")[2]
    assert f"python{last}\n" in (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")


def test_every_python_block_runs(newcomer: Path) -> None:
    (newcomer / "blocks.json").write_text(json.dumps(python_blocks()))
    script = (
        "import json\nfor name, code in json.load(open('blocks.json')):\n    exec(compile(code, name, 'exec'), {})\n"
    )
    done = run(["python", "-W", "error::UserWarning", "-c", script], newcomer, MPLBACKEND="agg")
    assert done.returncode == 0, done.stderr
    assert len(python_blocks()) >= 4


@pytest.fixture(scope="module")
def site(newcomer: Path) -> Path:
    """The site, built with every warning an error; building it runs the notebooks."""
    command = ["python", "-m", "sphinx", "--fail-on-warning", "--keep-going", "-q", "-c", str(ROOT / "docs")]
    out = newcomer / "site" / "html"
    inputs = {"STUDY": str(newcomer / "results" / "smoke"), "SCAN": str(newcomer / "example.cxi")}
    done = run([*command, str(ROOT), str(out)], newcomer, **inputs, SETTINGS=json.dumps(SMALL))
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_run_and_show_tables_and_figures(site: Path, name: str) -> None:
    notebook = json.loads((site.parent / "jupyter_execute" / "notebooks" / f"{name}.ipynb").read_text())
    shown = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    kinds = {kind for output in shown for kind in output.get("data", {})}
    assert {"text/html", "image/png"} <= kinds
    assert not [output for output in shown if output["output_type"] == "error"]
    page = (site / "notebooks" / f"{name}.html").read_text(encoding="utf-8")
    assert page.count("<img") >= 2
    assert "<table" in page


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("page", ["index.html", "docs/comparison.html", "notebooks/explore-a-study.html"])
def test_pages_fit_their_window_and_ask_for_nothing(browser: Any, site: Path, page: str, width: int) -> None:
    opened = browser.new_page(viewport={"width": width, "height": 900})
    asked, said = [], []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.goto((site / page).as_uri())
    opened.wait_for_selector("h1")
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    opened.close()


def test_formulas_are_drawn(browser: Any, site: Path) -> None:
    opened = browser.new_page()
    opened.goto((site / "docs" / "clipping.html").as_uri())
    assert opened.locator("math[display=block]").count() >= 7
    assert opened.locator("math[display=block]").first.bounding_box()["height"] > 15
    assert "$" not in opened.locator("article").inner_text()
    opened.close()
