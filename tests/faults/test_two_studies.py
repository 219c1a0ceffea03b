"""Two studies that begin at once in one new store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*path_separator.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def test_two_studies_into_one_store_both_finish(toy_study: Any, tmp_path: Path) -> None:
    studies = [toy_study(tmp_path / name, 1, store=tmp_path / "store.db", empty=None) for name in ("a", "b")]
    processes = [study.start("--workers", "1") for study in studies]
    for study, process in zip(studies, processes, strict=True):
        assert study.end_of(process)[0] == 0, study.stderr
    found = studies[0].stored()
    assert {run.info.status for run in found} == {"FINISHED"}
    parents = {run.info.run_id for run in found if "mlflow.parentRunId" not in run.data.tags}
    assert len(parents) == 2
    children = [run.data.tags["mlflow.parentRunId"] for run in found if "mlflow.parentRunId" in run.data.tags]
    assert sorted(children.count(parent) for parent in parents) == [2, 2]
