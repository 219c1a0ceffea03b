"""The report as a reader gets it: files, numbers, and a page that stands alone."""

from __future__ import annotations

import html.parser
import itertools
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from study.report import main, write_report
from study.report_page import markdown
from study.verdict import RULE

ROOT = Path(__file__).resolve().parents[2]
SHORT = dict(steps=24, side=12)
TWO_ARMS = {"overload": {"none": (0, 1, 7), "agc": (8, 0, 0)}}
VOID = {"meta", "img", "link", "br", "hr", "input"}


class Page(html.parser.HTMLParser):
    """A page's tags with their attributes, checked for nesting, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def out(tmp_path_factory, write_study_folder):
    """A study folder with its report; read-only."""
    folder = write_study_folder(tmp_path_factory.mktemp("report"), TWO_ARMS, **SHORT)
    assert write_report(folder) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def page(out):
    return Page(out / "report.html")


def test_all_files_are_there(out):
    assert {p.name for p in out.iterdir()} == {
        "study.json", "runs", "runs.csv", "steps.parquet", "summary.json", "report.html", "report.md", "figures",
    }  # fmt: skip
    pictures = {p.stem for p in (out / "figures").glob("*.png")}
    assert {"failure_probability", "survival", "loss_01_overload", "gallery_01_overload"} <= pictures
    assert pictures == {p.stem for p in (out / "figures").glob("*.csv")}


def test_summary_is_strict_json_with_arms_and_verdict(out):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    content = json.loads((out / "summary.json").read_text(), parse_constant=refuse)
    none, agc = content["arms"]
    assert (none["algorithm"], none["n"], none["n_failed"], none["p_vs_control"]) == ("none", 8, 7, None)
    assert agc["p_vs_control"] == 2 / 2**8
    assert content["verdict"]["word"] == "silver"
    assert content["verdict"]["rule"] == RULE
    assert content["verdict"]["evidence"][0]["n_better"] == 8


def test_the_page_needs_no_network(page):
    for _, attributes in page.tags:
        for key in ("src", "href", "srcset", "action"):
            assert re.match(r"data:image/png;base64,|#", attributes.get(key) or "#")
    assert "url(" not in page.source
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}


def test_the_verdict_comes_first_and_the_headings_are_in_order(page):
    assert [a["id"] for a in page.all("section")] == ["verdict", "arms", "figures", "methods", "runs"]
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert page.all("a")[0] == {"class": "skip", "href": "#verdict"}
    assert {a["href"] for a in page.all("a")} <= {f"#{a['id']}" for _, a in page.tags if "id" in a}


def test_every_picture_has_a_text_and_a_size(page, out):
    assert len(page.all("img")) == len(list((out / "figures").glob("*.png"))) >= 8
    for image in page.all("img"):
        assert image["alt"]
        assert int(image["width"]) > int(image["height"]) / 2 > 0


def test_the_page_says_what_the_numbers_say(page):
    text = " ".join(page.text.split())
    assert "Silver: agc lowers the rate of failed and stalled runs" in text
    assert "0 / 1 / 7" in text
    assert "0.88 0.47 to 1.00" in text
    assert "0.008 *" in text
    assert "baselines: constant object 0.163, mean patch 0.099, true object 0.0003" in text
    assert "tolerance to faulty frames" in text
    assert "batch_size" in text
    assert "d" * 32 in text
    assert "python -m study.shootout" in text


def test_a_regime_is_told_by_the_settings_that_set_it_apart(tmp_path, write_study_json, write_run):
    write_study_json(tmp_path, ["control", "overload"], ["none"])
    for regime, fault in (("control", ""), ("overload", "overload:rate=0.01")):
        write_run(
            tmp_path, regime=regime, algorithm="none", replicate=0, outcome="ok", realised={"fault": fault}, **SHORT
        )
    text = " ".join(Page(write_report(tmp_path)).text.split())
    assert "The overload regime. (optimizer adam, learning_rate 0.003, fault overload:rate=0.01" in text
    assert "The control regime. (optimizer adam, learning_rate 0.003, torch_loss_mode mae)" in text


def test_every_run_is_in_the_folded_table(page, out):
    runs = pd.read_csv(out / "runs.csv")
    assert "All 16 runs" in page.text
    assert all(run_id in page.text for run_id in runs["run_id"])


def test_markdown_says_the_same(out):
    text = (out / "report.md").read_text()
    assert "**Silver: agc lowers" in text
    assert "| overload | none | 0 / 1 / 7 | 0.88 (0.47 to 1.00) |" in text
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (out / link).is_file()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


def test_writing_again_gives_the_same_bytes(out):
    names = ["report.html", "report.md", "summary.json", "runs.csv", "steps.parquet"]
    before = [(out / name).read_bytes() for name in names]
    write_report(out)
    assert before == [(out / name).read_bytes() for name in names]


def test_names_with_markup_are_escaped(tmp_path, write_study_folder):
    evil = "<script>alert(1)</script>"
    counts = {f"{evil}|`x`": {"none": (1, 0, 0), "<b>": (0, 0, 1)}}
    write_study_folder(tmp_path, counts, study={"title": evil, "command": evil}, git_commit=evil, **SHORT)
    page = Page(write_report(tmp_path))
    assert not {"script", "b"} & {tag for tag, _ in page.tags}
    assert page.text.count("alert(1)") >= 4
    rows = [line for line in (tmp_path / "report.md").read_text().splitlines() if line.startswith("| \\<script")]
    assert len(rows) == 2
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


@pytest.mark.parametrize(
    ("counts", "options", "told"),
    [
        ({}, {}, "No run has finished yet."),
        ({"overload": {"agc": (1, 0, 0)}}, {}, "No comparison"),
        ({"overload": {"none": (0, 0, 2), "agc": (0, 0, 2)}}, {}, "Not enough evidence"),
        ({"real": {"none": (1, 0, 0), "agc": (1, 0, 0)}}, {"truth": False, "amp_ssim": None}, "Not enough evidence"),
        (
            {"overload": {"none": (0, 0, 1), "agc": (1, 0, 0)}},
            {"val_loss_final": math.nan, "baseline_constant": None, "reconstruction": False, "wall_s": None},
            "Not enough evidence",
        ),
        ({"overload": {"none": (2, 0, 0)}}, {"outcome": "oom", "realised": {}}, "2 runs ended without a judgement"),
    ],
    ids=["empty", "one arm", "all failed", "real scan, one seed", "no scores", "all lost"],
)
def test_whatever_a_study_holds_gets_a_report(tmp_path, write_study_folder, write_run, counts, options, told):
    if "outcome" in options:
        write_study_folder(tmp_path, {}, **SHORT)
        for k in range(2):
            write_run(tmp_path, regime="overload", algorithm="none", replicate=k, **options, **SHORT)
    else:
        write_study_folder(tmp_path, counts, **options, **SHORT)
    page = Page(write_report(tmp_path))
    assert told in page.text
    assert "nan" not in re.sub(r"\w*nan\w+|\w+nan\w*", "", page.text)


def test_markdown_escapes():
    assert markdown("a|b <i> `c`\nd") == "a\\|b \\<i\\> \\`c\\` d"
    assert markdown(math.nan) == "–"


def test_command_prints_the_path_and_writes_the_report(call, tmp_path, write_study_folder):
    write_study_folder(tmp_path, {"overload": {"none": (1, 0, 0)}}, **SHORT)
    done = call("report", str(tmp_path), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == str(tmp_path / "report.html")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["/no/such/folder"],
            "error: study: '/no/such/folder' is no folder; allowed: a folder that a study has written, or an",
        ),
        (
            ["none", "--tracking-uri", "sqlite:////no/such/store.db"],
            "error: study: 'none' is no folder, and /no/such/store.db is no MLflow store; allowed: ",
        ),
        (["none", "--tracking-uri", "ftp://x"], "error: --tracking-uri: 'ftp://x' is of unknown kind 'ftp'"),
        ([], "error: the following arguments are required: DIR_OR_EXPERIMENT"),
        ([str(ROOT / "study")], f"error: {ROOT / 'study'}: no study.json there"),
    ],
)
def test_bad_input_is_one_line_and_status_two(capsys, arguments, message):
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_nothing_heavy_is_imported():
    heavy = ("torch", "mlflow", "lightning", "ptycho_torch")
    modules = "study.report_files, study.report_page, study.figures"
    code = f"import sys, {modules}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_figures_of_an_earlier_report_go_and_a_readers_own_files_stay(tmp_path, write_study_folder):
    folder = write_study_folder(tmp_path, TWO_ARMS, **SHORT)
    former, own = folder / "figures" / "loss_07_no_more.png", folder / "figures" / "for_my_talk.png"
    former.parent.mkdir(exist_ok=True)
    former.touch()
    own.touch()
    write_report(folder)
    assert (former.exists(), own.exists()) == (False, True)
    assert (folder / "figures" / "loss_01_overload.png").exists()
