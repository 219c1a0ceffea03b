"""The records of a study's runs, from the lines that the runs left to one parquet file, and read back in parts.

Nothing here holds more than a part of the records at a time, however long a run is and however many there are.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ptycho.errors import InputError

STEP_COLUMNS = (
    *("run_id", "step", "loss", "grad_norm_preclip", "grad_norm_postclip", "clipped_fraction", "update_ratio"),
    *("learning_rate", "weight_norm"),
)
EVAL_COLUMNS = ("run_id", "step", "val_loss", "amp_spread", "phase_spread")
LINES = 5_000  # in memory at a time while they are read
ROWS = 50_000  # the same for a part of the parquet file


class StepTable:
    """``steps.parquet``, open: the rows of a run stand together, in the order of its steps.

    Args:
        path: the file, as :func:`write_steps` made it.
        owners: whose rows each of its row groups holds.
    """

    def __init__(self, path: Path, owners: Sequence[str]) -> None:
        self._file = pq.ParquetFile(path, read_dictionary=["run_id"])
        self._owners = tuple(owners)

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    @property
    def last_step(self) -> int:
        """The highest step of any run; 0 where there is none."""
        groups = map(self._file.metadata.row_group, range(len(self._owners)))
        return max((group.column(STEP_COLUMNS.index("step")).statistics.max for group in groups), default=0)

    def read(self) -> pd.DataFrame:
        """Every row, in memory at once."""
        return self._file.read().to_pandas()

    def parts(self, runs: Collection[str], column: str) -> Iterator[pd.DataFrame]:
        """``run_id, step`` and one column of the given runs, in parts of bounded size."""
        wanted = [number for number, owner in enumerate(self._owners) if owner in set(runs)]
        if not wanted:
            return
        columns = ["run_id", "step", column]
        for batch in self._file.iter_batches(ROWS, row_groups=wanted, columns=columns):
            yield batch.to_pandas().astype({"run_id": str})


def windowed(parts: Iterable[pd.DataFrame], column: str, width: int, last: int, how: str = "median") -> pd.DataFrame:
    """A column of each run in windows of ``width`` steps: a row for each ``run_id``, a column for each window's end.

    Args:
        parts: rows with ``run_id``, ``step`` and the column; a run's rows stand together, in order.
        column: what is looked at; infinities and missing numbers are left out.
        width: steps of a window.
        last: the highest step.
        how: what becomes of a window's values: ``median``, ``mean`` or ``max``; NaN where there are none.
    """
    ends = np.arange(width, last + width, width)
    found: dict[str, NDArray[np.float64]] = {}

    def keep(rows: pd.DataFrame) -> None:
        windows = rows.groupby(["run_id", "window"], sort=False, as_index=False).agg({"value": how})
        for run_id, window, value in windows.itertuples(index=False):
            found.setdefault(run_id, np.full(len(ends), np.nan))[window] = value

    rest = pd.DataFrame()
    for part in parts:
        value = part[column].replace([np.inf, -np.inf], np.nan)
        window = np.maximum(part["step"] - 1, 0) // width
        rows = pd.concat([rest, pd.DataFrame({"run_id": part["run_id"], "window": window, "value": value})])
        unfinished = (rows["run_id"] == rows["run_id"].iloc[-1]) & (rows["window"] == rows["window"].iloc[-1])
        keep(rows[~unfinished])
        rest = rows[unfinished]
    if len(rest):
        keep(rest)
    return pd.DataFrame.from_dict(found, orient="index", columns=ends)


def write_steps(path: Path, folders: Sequence[Path]) -> list[str]:
    """Write the step records of run folders into one parquet file; whose rows each row group holds.

    Raises:
        InputError: a damaged line, named by its number.
    """
    kinds: dict[str, Callable[[], pa.DataType]] = {"run_id": pa.string, "step": pa.int64}
    schema = pa.schema([(key, kinds.get(key, pa.float64)()) for key in STEP_COLUMNS])
    owners = []
    with pq.ParquetWriter(path, schema) as writer:
        for folder in folders:
            for columns in read_lines(folder / "steps.jsonl", STEP_COLUMNS[1:]):
                run_id = [folder.name] * len(columns["step"])
                writer.write_table(pa.table({"run_id": run_id, **columns}, schema=schema))
                owners.append(folder.name)
    return owners


def read_evals(folders: Iterable[Path]) -> pd.DataFrame:
    """The validations of run folders, one row each.

    Raises:
        InputError: a damaged line, named by its number.
    """
    frames = [
        pd.DataFrame({"run_id": folder.name, **columns})
        for folder in folders
        for columns in read_lines(folder / "evals.jsonl", EVAL_COLUMNS[1:])
    ]
    if not frames:
        return pd.DataFrame({key: pd.Series(dtype=float) for key in EVAL_COLUMNS}).astype({"run_id": str})
    return pd.concat(frames, ignore_index=True)[list(EVAL_COLUMNS)]


def read_lines(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Columns of a JSON-lines file of numbers, many lines at a time; a missing file is empty, a missing number NaN.

    A last line that a killed run could not complete is left out.

    Raises:
        InputError: a damaged line, named by its number.
    """
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        rows = _rows(path, lines)
        while part := list(itertools.islice(rows, LINES)):
            step = np.array([_step(path, row) for row in part], dtype=np.int64)
            yield {"step": step} | {
                key: np.array([_number(path, key, row) for row in part]) for key in columns if key != "step"
            }


def _rows(path: Path, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if line.endswith("\n") and line.strip():
            yield _parse_line(line, f"{path}, line {number}")
        elif line.strip():
            with contextlib.suppress(InputError):
                yield _parse_line(line, str(path))


def _parse_line(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: {line[:40].strip()!r} is no JSON ({error}); allowed: one object a line") from error
    if not isinstance(row, dict):
        raise InputError(f"{where}: {line[:40].strip()!r}; allowed: one object a line")
    return row


def _step(path: Path, row: dict[str, Any]) -> int:
    step = row.get("step")
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < 2**53:
        raise InputError(f"{path}: step is {str(step)[:40]}; allowed: a whole number from 0 on in every line")
    return step


def _number(path: Path, key: str, row: dict[str, Any]) -> float:
    value = row.get(key)
    if value is None:
        return np.nan
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    except OverflowError:
        pass
    raise InputError(f"{path}: {key} is {str(value)[:40]}; allowed: a number, or nothing")
