"""``python -m study.inspect FILE``: what is understood of a scan, what looks wrong or is missing, what to run next.

Nothing is trained. A picture is written beside the scan, or where ``--picture`` says.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ptycho.config.config import ScanConfig
from ptycho.config.settings import add_flags, annotations_of, chosen, flag_of, setting, validate
from ptycho.errors import InputError
from study.command import FINISHED, Parser, run_command
from study.short_help import short_help

if TYPE_CHECKING:  # NumPy is loaded once the flags are known to be good
    from ptycho.readers.overview import Overview

USAGE = "python -m study.inspect FILE [SETTING ...]"
NUMBERS_SHOWN = 8
REMEDIES = {"not finite": "; --drop-nan leaves them out"}
GOOD_OVERLAP = 0.5  # below it, ptychography has little to tie neighbouring frames together


@dataclasses.dataclass(frozen=True, kw_only=True)
class InspectConfig(ScanConfig):
    """How the scan is understood, and where its picture goes."""

    picture: str | None = setting(None, "Where the picture goes; by default beside the scan, as FILE.png")

    def __post_init__(self) -> None:
        validate(self)


class Line(NamedTuple):
    """One line of what is printed."""

    label: str
    text: str


def describe(scan: Overview) -> list[Line]:
    """A scan in words, line by line."""
    return [*_frames(scan), *_positions(scan), *_probe(scan), *_suspicions(scan), *_missing(scan)]


def _frames(scan: Overview) -> list[Line]:
    height, width = scan.frame_px
    window, totals = scan.window, scan.facts.totals
    used = "" if (window.side, window.bin) == (height, 1) else f", {window.side} px used"
    used += f", {window.bin} x {window.bin} binned" if window.bin > 1 else ""
    kind = "counts" if scan.values == "counts" else "amplitudes without a unit; squared"
    return [
        Line("format", f"{scan.format}, {kind}"),
        Line("frames", f"{len(totals)} of {height} x {width} px{used}: N = {window.size}"),
        Line("zero frequency", "at the corner" if window.corner else "in the centre"),
        Line("per frame", f"{_min_median_max(totals)}; mean {totals.mean():,.0f}, in all {totals.sum():,.0f}"),
        Line("brightest pixel", _min_median_max(scan.facts.brightest)),
        Line("masked", "no pixel" if scan.mask is None else f"{1 - scan.mask.mean():.2%} of the pixels"),
    ]


def _min_median_max(values: Any) -> str:
    import numpy as np

    return f"{values.min():,.0f} to {values.max():,.0f}, median {np.median(values):,.0f}"


def _positions(scan: Overview) -> list[Line]:
    from ptycho.readers.geometry import energy_kev

    known = scan.geometry
    said = {
        "energy": None if known.wavelength_m is None else f"{energy_kev(known.wavelength_m):.4g} keV",
        "distance": None if known.distance_m is None else f"{known.distance_m:.4g} m",
        "detector pixel": None if known.pixel_m is None else f"{known.pixel_m[0] * 1e6:.4g} um",
        "object pixel": None if scan.object_pixel_m is None else f"{scan.object_pixel_m[0] * 1e9:.4g} nm",
    }
    lines = [Line("geometry", ", ".join(f"{name} {text}" for name, text in said.items() if text) or "not known")]
    if scan.positions_px is None or scan.step_px is None or scan.overlap is None:
        return [*lines, Line("scan", f"{len(scan.facts.totals)} positions, which cannot be converted to pixels yet")]
    rows, columns = (float(scan.positions_px[:, axis].max() - scan.positions_px[:, axis].min()) for axis in (0, 1))
    row_um, column_um = (0.0, 0.0) if scan.object_pixel_m is None else (side * 1e6 for side in scan.object_pixel_m)
    in_um = f" ({rows * row_um:.3g} x {columns * column_um:.3g} um)" if row_um else ""
    step_um = f" ({scan.step_px * row_um:.3g} um)" if row_um else ""
    low = "" if scan.overlap >= GOOD_OVERLAP else f"; low, {GOOD_OVERLAP:.0%} or more is usual"
    if scan.probe.source == "estimated":
        low = "; estimated in focus: a probe out of focus is larger, and has to come from --scan-probe"
    return [
        *lines,
        Line("scan", f"{rows:.4g} x {columns:.4g} px{in_um}, step {scan.step_px:.3g} px{step_um}"),
        Line("overlap", f"{max(0.0, scan.overlap):.0%} of the probe's diameter{low}"),
    ]


def _probe(scan: Overview) -> list[Line]:
    source = "estimated from the frames" if scan.probe.source == "estimated" else scan.probe.source
    factor = f"{scan.probe_factor:.4g}" if scan.values == "counts" else "not known without counts"
    modes = len(scan.probe.modes)
    return [
        Line("probe", f"{source}, {modes} mode{'s' * (modes > 1)}, {scan.probe_diameter_px:.3g} px across"),
        Line("probe power", f"times {factor} gives the mean frame's counts; done on reading"),
    ]


def _suspicions(scan: Overview) -> list[Line]:
    import numpy as np

    pixels = {"hot": scan.pixels.hot, "dead": scan.pixels.dead}
    lines = [
        Line(
            "suspected", f"{len(where)} {what} pixels{_some([tuple(p) for p in where.tolist()])}; --mask-hot masks them"
        )
        for what, found in pixels.items()
        if len(where := np.argwhere(found))
    ]
    lines += [
        Line("suspected", f"{len(numbers)} frames: {what}{_some(numbers.tolist())}{REMEDIES.get(what, '')}")
        for what, numbers in scan.frames.items()
    ]
    if scan.negative < 0:
        lines.append(
            Line("suspected", f"negative values down to {scan.negative:.3g}; --clip-negative takes them for 0")
        )
    return lines or [Line("suspected", "nothing")]


def _some(items: list[Any]) -> str:
    more = ", ..." if len(items) > NUMBERS_SHOWN else ""
    return f" ({', '.join(map(str, items[:NUMBERS_SHOWN]))}{more})"


def _missing(scan: Overview) -> list[Line]:
    notes = [Line("note", note) for note in scan.notes]
    return [*notes, *(Line("missing", f"{what}: give {flag}") for what, flag in scan.missing)]


def next_command(scan: Overview, given: Mapping[str, Any]) -> str:
    """The command to run next: a first study with all that it needs, or this one again with what is missing."""
    needed = {"drop_nan": "not finite" in scan.frames, "clip_negative": scan.negative < 0}
    given = {**given, **{name: True for name, is_needed in needed.items() if is_needed}}
    words = [word for field in dataclasses.fields(ScanConfig) if field.name in given for word in _flag(field, given)]
    if scan.missing:
        asked = [f"{missing.flag} {missing.flag.rpartition('-')[2].upper()}" for missing in scan.missing]
        return " ".join([shlex.join(["python", "-m", "study.inspect", str(scan.path), *words]), *asked])
    arms = ["--algo", "none", "--algo", "norm", "--algo", "agc", "--seeds", "2"]
    return shlex.join(["python", "-m", "study.shootout", "--preset", "real", "--data", str(scan.path), *words, *arms])


def _flag(field: dataclasses.Field[Any], given: Mapping[str, Any]) -> list[str]:
    value = given[field.name]
    if annotations_of(ScanConfig)[field.name] is bool:
        return [flag_of(field) if value else f"--no-{flag_of(field)[2:]}"]
    return [flag_of(field), str(value)]


def show(lines: list[Line]) -> None:
    """Print lines as a table; plain and unwrapped where nobody watches."""
    if not sys.stdout.isatty():
        sys.stdout.writelines(f"{line.label:<16}{line.text}\n" for line in lines)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    for label, text in lines:
        table.add_row(Text(label), Text(text, style="yellow" if label in ("suspected", "missing") else ""))
    Console(highlight=False).print(table)


def save_picture(scan: Overview, asked: str | None) -> Path | None:
    """Write the picture; None where there is no place for it beside the scan.

    Raises:
        InputError: the place that was asked for cannot be written.
    """
    from study.inspect_picture import draw

    path = Path(f"{scan.path}.png" if asked is None else asked)
    try:
        draw(scan).savefig(path, dpi=110, format="png")
    except OSError as error:
        if asked is None:
            return None
        raise InputError(f"picture: {path} cannot be written ({error.strerror}); allowed: a writable file") from None
    return path


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(prog="python -m study.inspect", usage=USAGE, description=__doc__, short=brief)
    parser.add_argument("file", metavar="FILE", help="a scan: CXI, NXcxi_ptycho, /dp HDF5, ptyd, or NPZ")
    add_flags(parser, InspectConfig)
    return parser


def brief() -> str:
    """The help that fits a screen."""
    about = "What is understood of a scan (CXI, NXcxi_ptycho, /dp HDF5, ptyd, NPZ), what looks wrong or is missing, "
    return short_help(USAGE, f"{about} what to run next. Trains nothing.", (ScanConfig, InspectConfig), {})


def command() -> int:
    """Look at one scan."""
    namespace = build_parser().parse_args()
    given = chosen(namespace, InspectConfig)
    config = InspectConfig(**given)
    from ptycho.readers.overview import look_at

    scan = look_at(
        Path(namespace.file), ScanConfig(**{f.name: getattr(config, f.name) for f in dataclasses.fields(ScanConfig)})
    )
    picture = save_picture(scan, config.picture)
    where = "none: the scan's folder cannot be written; give --picture FILE" if picture is None else str(picture)
    show([*describe(scan), Line("picture", where), Line("next", next_command(scan, given))])
    return FINISHED


if __name__ == "__main__":
    sys.exit(run_command(command))
