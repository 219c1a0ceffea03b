"""A run's step records on disk: read as they grow, packed into one parquet file, and unpacked again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

READ_BYTES = 4 << 20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One line of a JSON-lines file, and the byte behind it."""

    values: Mapping[str, Any]
    end: int


def read_records(path: Path, offset: int = 0) -> list[Record]:
    """The complete lines behind byte ``offset``, at most a few megabytes of them.

    A torn or foreign line is passed over: only lines that are JSON objects with a step count.
    """
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            block = stream.read(READ_BYTES)
    except FileNotFoundError:
        return []
    records, start = [], 0
    while (stop := block.find(b"\n", start)) >= 0:
        values = _parse(block[start:stop])
        if values is not None:
            records.append(Record(values=values, end=offset + stop + 1))
        start = stop + 1
    return records


def blocks(path: Path) -> Iterator[list[Record]]:
    """Every record of a file, a few megabytes at a time."""
    offset = 0
    while records := read_records(path, offset):
        yield records
        offset = records[-1].end


def write_trace(steps: Path, target: Path) -> Path | None:
    """Pack the step records into a parquet file; None where there are no records."""
    names = dict.fromkeys(name for records in blocks(steps) for record in records for name in record.values)
    if not names:
        return None
    schema = pa.schema([(name, pa.int64() if name == "step" else pa.float64()) for name in names])
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        for records in blocks(steps):
            columns = {name: [_float(record.values.get(name)) for record in records] for name in names}
            columns["step"] = [record.values["step"] for record in records]
            writer.write_table(pa.table(columns, schema=schema))
    return target


def restore_trace(trace: Path, steps: Path) -> None:
    """Unpack a parquet file into step records, and remove it; nothing where there is none."""
    if not trace.is_file():
        return
    with steps.open("w", encoding="utf-8") as stream, pq.ParquetFile(trace) as packed:
        for batch in packed.iter_batches():
            stream.writelines(json.dumps(row) + "\n" for row in batch.to_pylist())
    trace.unlink()


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        values = json.loads(line, parse_int=_bounded_int)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) and type(values.get("step")) is int else None


def _bounded_int(digits: str) -> int | float:
    return int(digits) if len(digits) < 19 else float(digits)


def _float(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None
