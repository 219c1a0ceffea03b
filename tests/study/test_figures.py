"""What the figures are drawn from, and that they can be drawn whatever a study holds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from ptycho.config.algorithms import ALGORITHMS
from ptycho.errors import InputError
from study import figure_data, figures, gallery
from study.drawing import styles_of
from study.step_table import windowed
from study.summaries import summarise
from study.table import collect

SHORT = dict(steps=24, side=12)


@pytest.fixture
def draw(tmp_path, write_study_folder):
    """All drawings of a study with the given counts, by name."""

    def inner(counts, **options):
        tables = collect(write_study_folder(tmp_path, counts, **(SHORT | options)))
        return {drawing.name: drawing for drawing in figures.draw_all(tables, summarise(tables))}

    return inner


def test_every_kind_of_figure_is_drawn(draw):
    drawings = draw({"overload": {"none": (0, 1, 2), "agc": (3, 0, 0)}})
    assert list(drawings) == [
        "failure_probability", "survival", "final_loss", "performance_profile", "clipped_fraction",
        "loss_01_overload", "gradient_norm_01_overload", "gallery_01_overload",
    ]  # fmt: skip
    for drawing in drawings.values():
        assert len(drawing.data) > 0
        assert drawing.alt
        assert drawing.caption.endswith(".")


def test_of_many_conditions_those_are_drawn_that_set_most_arms_apart(draw):
    alike = {f"alike {k}": {"none": (3, 0, 0), "agc": (3, 0, 0)} for k in range(7)}
    lonely = {"lonely": {"none": (0, 0, 3)}}
    apart = {f"apart {k}": {"none": (0, 0, 3), "agc": (3, 0, 0)} for k in range(6)}
    drawn = draw({**alike, **lonely, **apart})["failure_probability"].data["condition"]
    assert list(dict.fromkeys(drawn)) == list(apart)


def test_quartiles_leave_failed_runs_out_and_show_them_singly(tmp_path, write_study_json, write_run):
    write_study_json(tmp_path, ["overload"], ["none"])
    for replicate, (outcome, level) in enumerate([("ok", 1.0), ("ok", 3.0), ("failed", 50.0)]):
        row = write_run(tmp_path, regime="overload", algorithm="none", replicate=replicate, outcome=outcome, **SHORT)
        trace = "".join(f'{{"step": {k}, "loss": {level}}}\n' for k in range(1, 11))
        (tmp_path / "runs" / row["run_id"] / "steps.jsonl").write_text(trace)
    tables = collect(tmp_path)
    data = figure_data.loss_data(tables, figure_data.labelled(tables))
    curve = {name: group["value"].unique().tolist() for name, group in data.groupby("curve")}
    assert curve["median"] == [2.0]
    assert (curve["lower quartile"], curve["upper quartile"]) == ([1.5], [2.5])
    assert curve["failed 2"] == [50.0]
    assert curve["constant object"] == [0.163]
    died = data[data["curve"] == "died"].iloc[0]
    assert died["step"] == tables.runs["failed_at_step"].max()


@pytest.mark.parametrize("arms", [1, 2, 3, 5])
def test_a_legend_is_no_wider_than_its_figure(draw, arms):
    counts = dict.fromkeys(["none", "norm", "value", "agc", "agc_unit"][:arms], (1, 1, 1))
    drawn = draw({"overload": counts})
    for name in ("loss_01_overload", "gradient_norm_01_overload", "survival"):
        figure = drawn[name].figure
        figure.draw_without_rendering()
        (legend,) = figure.legends
        assert legend.get_window_extent().x0 >= 0
        assert legend.get_window_extent().x1 <= figure.bbox.width


def test_of_many_failed_runs_some_are_drawn_and_every_death(tmp_path, write_study_folder):
    out = write_study_folder(tmp_path, {"overload": {"none": (1, 0, 45)}}, steps=20, side=12)
    tables = collect(out)
    data = figure_data.loss_data(tables, figure_data.labelled(tables))
    assert data["curve"].str.startswith("failed ").groupby(data["curve"]).any().sum() == figure_data.MOST_FAILED
    assert (data["curve"] == "died").sum() == 45


def test_a_spike_of_one_step_survives_the_windows():
    steps = pd.DataFrame({"run_id": "a", "step": range(1, 1001), "g": 1.0})
    steps.loc[537, "g"] = 1e4
    assert windowed([steps], "g", 10, 1000, "max").loc["a"].max() == 1e4
    assert windowed([steps], "g", 10, 1000).loc["a"].tolist() == [1.0] * 100


def test_windows_leave_infinities_out():
    steps = pd.DataFrame({"run_id": "a", "step": [1, 2, 3], "g": [1.0, np.inf, np.nan]})
    assert windowed([steps], "g", 1, 3).loc["a"].dropna().to_dict() == {1: 1.0}


def test_the_first_step_is_in_the_first_window():
    steps = pd.DataFrame({"run_id": "a", "step": range(20), "g": 1.0}).assign(g=lambda rows: rows["step"] == 0)
    assert windowed([steps], "g", 10, 19, "max").loc["a"].to_dict() == {10: 1.0, 20: 0.0}


@pytest.mark.parametrize("size", [1, 7, 10, 33])
@pytest.mark.parametrize("how", ["median", "mean", "max"])
def test_windows_do_not_depend_on_where_the_parts_end(size, how):
    values = np.random.default_rng(0).standard_normal(60)
    steps = pd.DataFrame({"run_id": ["a"] * 35 + ["b"] * 25, "step": [*range(1, 36), *range(1, 26)], "g": values})
    parts = [steps.iloc[k : k + size] for k in range(0, 60, size)]
    whole = steps.assign(step=-(-steps["step"] // 10) * 10).groupby(["run_id", "step"])["g"].agg(how)
    whole = whole.reset_index().pivot_table(index="run_id", columns="step", values="g")
    pd.testing.assert_frame_equal(windowed(parts, "g", 10, 35, how), whole, check_names=False)


def test_survival_curves_reach_the_end_of_the_study(draw):
    data = draw({"overload": {"none": (1, 0, 3), "agc": (4, 0, 0)}})["survival"].data
    assert data.groupby("label")["time"].max().tolist() == [24, 24]
    assert data.groupby("label")["survival"].min().to_dict() == {"agc": 1.0, "none": 0.25}


def test_the_gallery_shows_one_typical_replicate_of_every_arm(tmp_path, write_study_json, write_run):
    write_study_json(tmp_path, ["overload"], ["none", "agc"])
    for replicate, words in enumerate([("ok", "ok"), ("failed", "failed"), ("failed", "ok"), ("failed", "ok")]):
        for algorithm, outcome in zip(("none", "agc"), words, strict=True):
            options = dict(replicate=replicate, outcome=outcome, reconstruction=algorithm == "agc", **SHORT)
            write_run(tmp_path, regime="overload", algorithm=algorithm, **options)
    data = figures.gallery_data(tmp_path, figure_data.labelled(collect(tmp_path)))
    assert data["replicate"].tolist() == [2, 2]
    assert data["outcome"].tolist() == ["failed", "ok"]
    assert data["reconstruction"].tolist() == [False, True]
    texts = [text.get_text() for ax in figures.gallery(data, tmp_path).axes for text in ax.texts]
    assert texts == ["nothing to show"] * 2


def test_a_reconstruction_is_brought_to_the_phase_tilt_and_scale_of_the_truth():
    rng = np.random.default_rng(0)
    truth = (1 + rng.random((6, 6))) * np.exp(1j * rng.random((6, 6)))
    tilt = np.exp(1j * (0.3 * np.arange(6)[:, None] - 0.1 * np.arange(6)))
    image = (0.2 * np.exp(2j) * tilt * truth).astype(np.complex64)
    image[0, 0] = np.nan
    shown = gallery.for_display(gallery.Picture(image, truth))
    assert np.isnan(shown[0, 0])
    np.testing.assert_allclose(shown.ravel()[1:], truth.ravel()[1:], rtol=1e-3)


def test_without_a_truth_the_phase_is_levelled():
    tilt = np.exp(1j * (0.3 * np.arange(8)[:, None] - 0.1 * np.arange(8)))
    alone = gallery.for_display(gallery.Picture(np.exp(2j) * tilt, None))
    np.testing.assert_allclose(np.angle(alone), 0, atol=1e-6)
    void = gallery.for_display(gallery.Picture(np.full((4, 4), np.nan + 0j), None))
    assert np.isnan(void).all()


def test_a_picture_shows_only_what_was_well_seen(tmp_path):
    weight = np.zeros((9, 9), np.float32)
    weight[2:7, 1:8] = 1.0
    weight[2:7, 0] = 0.1
    weight[4, 4] = 0.1
    np.savez(tmp_path / "r.npz", reconstruction=np.ones((9, 9), np.complex64), weight=weight)
    picture = gallery.read_picture(tmp_path / "r.npz")
    assert picture.image.shape == (5, 7)
    assert np.argwhere(np.isnan(picture.image)).tolist() == [[2, 3]]


def test_a_damaged_reconstruction_is_named(draw, tmp_path):
    draw({"overload": {"none": (1, 0, 0)}})
    (path,) = tmp_path.glob("runs/*/reconstruction.npz")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"reconstruction\.npz: no reconstruction can be read"):
        gallery.read_picture(path)


def test_a_pickled_reconstruction_is_refused(tmp_path):
    path = tmp_path / "reconstruction.npz"
    np.savez(path, reconstruction=np.array([{}], dtype=object), weight=np.ones((1, 1)))
    with pytest.raises(InputError, match="allow_pickle=False"):
        gallery.read_picture(path)


def test_frontier_is_drawn_where_rates_differ(tmp_path, write_study_json, write_run):
    write_study_json(tmp_path, ["frontier"], ["none", "agc"])
    for algorithm, limit in (("none", 0.5), ("agc", 5.0)):
        for rate in (0.1, 1.0, 10.0):
            for k in range(2):
                outcome = "failed" if rate > limit else "ok"
                options = dict(regime="frontier", algorithm=algorithm, replicate=k, learning_rate=rate, **SHORT)
                write_run(tmp_path, outcome=outcome, reconstruction=False, **options)
    tables = collect(tmp_path)
    frontier, *_ = figures.draw_all(tables, summarise(tables))
    assert frontier.name == "frontier"
    assert frontier.data.drop_duplicates("label").set_index("label")["gain"].to_dict() == pytest.approx(
        {"none": 1.0, "agc": 10.0}
    )
    legend = [text.get_text() for text in frontier.figure.axes[0].get_legend().get_texts()]
    assert legend == ["none (LR50 0.32, gain 1.0)", "agc (LR50 3.2, gain 10.0)"]


@pytest.mark.parametrize(
    ("counts", "options"),
    [
        ({"a$b_{^": {"<i>x</i>": (1, 1, 1)}}, {}),
        ({"overload": {"none": (1, 0, 1)}}, {"reconstruction": False}),
    ],
    ids=["odd names", "no reconstruction"],
)
def test_whatever_a_study_holds_can_be_drawn(draw, tmp_path, counts, options):
    """Other such studies are drawn for their reports, see ``test_report.py``."""
    for drawing in draw(counts, **options).values():
        drawing.figure.savefig(tmp_path / f"{drawing.name}.png", dpi=30)


def test_nothing_is_drawn_of_nothing(tmp_path, write_study_json):
    write_study_json(tmp_path, [], [])
    tables = collect(tmp_path)
    assert list(figures.draw_all(tables, [])) == []


def test_runs_without_any_step_can_be_drawn(tmp_path, write_study_folder):
    write_study_folder(tmp_path, {"overload": {"none": (0, 0, 2)}}, **SHORT)
    for path in tmp_path.glob("runs/*/*.jsonl"):
        path.unlink()
    tables = collect(tmp_path)
    for drawing in figures.draw_all(tables, summarise(tables)):
        drawing.figure.savefig(tmp_path / "figure.png", dpi=30)


def test_an_algorithm_looks_the_same_in_every_study():
    alone, together = styles_of(["agc"]), styles_of(["none", "norm", "agc"])
    assert alone["agc"] == together["agc"]
    assert len(set(styles_of(list(ALGORITHMS)).values())) == len(ALGORITHMS)
    two = styles_of(["agc 0.01", "agc 0.1"])
    assert two["agc 0.01"].colour == two["agc 0.1"].colour
    assert two["agc 0.01"].dash != two["agc 0.1"].dash
