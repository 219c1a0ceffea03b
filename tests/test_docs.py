"""The documentation's links lead somewhere, its commands exist, its tables follow the code, its doctests hold."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ptycho.config.plugins import load_plugins
from ptycho.config.settings import chosen
from study.presets import make_design
from study.quality import SCORES
from study.run_metrics import EVALS, FINAL, MAXIMA, MEANS
from study.settings import RunSettings, StudyConfig
from study.shootout import build_parser
from study.step_table import EVAL_COLUMNS, STEP_COLUMNS
from study.table import RUN_COLUMNS

pytestmark = pytest.mark.usefixtures("forgotten_afterwards")  # examples register what is theirs
ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
PAGES = [*sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]), *NOTEBOOKS]
DOCTESTED = sorted(
    path for package in ("ptycho", "ptycho_torch", "study") for path in (ROOT / package).rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)  # fmt: skip
LINK = re.compile(r"\]\((?!https?://)([^)\s]+)\)")
FENCED = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)


def text_of(page: Path) -> str:
    """A page's Markdown; of a notebook the Markdown cells."""
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".ipynb":
        return text
    return "\n\n".join("".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "markdown")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as they are made on GitHub and in the site."""
    headings = re.findall(r"^#+ +(.*)$", FENCED.sub("", text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    broken = []
    for link in LINK.findall(FENCED.sub("", text_of(page))):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def commands() -> Iterator[tuple[str, str]]:
    """Every command of ours that a page shows, in a block or in a sentence: its module and its arguments."""
    for page in PAGES:
        text = text_of(page).replace("\\\n", " ")
        lines = re.findall(r"^ *(?:\$ )?(python -m study\.\w+[^\n#]*)", text, re.MULTILINE)
        for command in {*lines, *re.findall(r"`(python -m study\.\w+[^`]*)`", text)}:
            module, _, arguments = command.removeprefix("python -m ").strip().partition(" ")
            yield module, arguments


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the files that the notebooks write."""
    folder = tmp_path_factory.mktemp("plugins")
    for notebook in NOTEBOOKS:
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            if cell["source"][0].startswith("%%writefile"):
                (folder / cell["source"][0].split()[1]).write_text("".join(cell["source"][1:]))
    return folder


@pytest.mark.parametrize("arguments", sorted({words for module, words in commands() if module == "study.shootout"}))
def test_every_study_of_the_documentation_has_runs(
    arguments: str, plugins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(plugins)
    namespace = build_parser().parse_args(shlex.split(arguments))
    load_plugins(chosen(namespace, RunSettings).get("plugin", ()))
    design = make_design(StudyConfig(**chosen(namespace, StudyConfig)))
    RunSettings(**chosen(namespace, RunSettings))
    assert len(design.arms) * len(design.regimes) * len(design.replicates) > 0


def test_every_command_of_the_documentation_exists() -> None:
    modules = {module for module, _ in commands()}
    assert {"study.inspect", "study.report", "study.sync", "study.example"} <= modules
    for module in modules:
        source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
        assert '__name__ == "__main__"' in source, module


def test_every_preset_is_named_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for preset in ("frontier", "depth", "thresholds", "quality", "real"):
        assert f"--preset {preset}" in text


def test_the_settings_page_is_what_the_declarations_say() -> None:
    code = (
        "import sys, write_settings; sys.stdout.write(write_settings.page())"  # apart from the plugins of other tests
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "docs")))}
    page = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert page == (ROOT / "docs" / "settings.md").read_text(encoding="utf-8"), "run: python docs/write_settings.py"
    for cls in (StudyConfig, RunSettings):
        for name in cls.__dataclass_fields__:
            assert f"`--{name.replace('_', '-')}`" in page or name == "gradient_clip_val"


def test_every_column_metric_and_tag_is_explained() -> None:
    page = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
    metrics = [*MEANS.values(), *EVALS.values(), *(f"{MEANS[name]}_max" for name in MAXIMA)]
    metrics += [prefix + name for prefix, names in FINAL.items() for name in names]
    senders = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "study").glob("track*.py"))
    tags = set(re.findall(r'"(study\.[a-z_]+)"', senders)) | {"arm", "study.algorithm"}
    assert {"study.id", "study.outcome", "study.reaped"} <= tags, "found in the code"
    for name in (*RUN_COLUMNS, *SCORES, *STEP_COLUMNS, *EVAL_COLUMNS, *metrics, *tags - {"study.shootout"}):
        assert f"`{name}`" in page, name


def test_every_page_is_in_the_site() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    trees = "\n".join(re.findall(r"```{toctree}.*?```", index, re.DOTALL)).splitlines()
    pages = {path.stem for path in ROOT.glob("docs/*.md")} - {"index"}
    assert pages <= set(trees)
    assert {f"../notebooks/{path.stem}" for path in NOTEBOOKS} <= set(trees)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_committed_without_outputs_and_compute_nothing(notebook: Path) -> None:
    cells = [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    code = "\n".join("".join(cell["source"]) for cell in cells if not cell["source"][0].startswith("%%writefile"))
    assert not re.search(r"^(def|class|for|while) |\b(numpy|torch|scipy)\b", code, re.MULTILINE)


@pytest.mark.parametrize("path", DOCTESTED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_doctests_hold(path: Path) -> None:
    parts = path.relative_to(ROOT).with_suffix("").parts
    module = importlib.import_module(".".join(parts).removesuffix(".__init__"))
    failed, attempted = doctest.testmod(module)
    assert (failed, attempted > 0) == (0, True)
