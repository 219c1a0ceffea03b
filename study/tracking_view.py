"""The view of a study that MLflow's page opens with: runs grouped into arms, mean lines, failures first.

MLflow keeps such views as an experiment tag that holds the page's state. Its form is undocumented; a page
that cannot read it says so and shows its usual view.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

VIEW_TAG = "mlflow.sharedViewState.study"
VIEW_QUERY = "viewStateShareKey=study&compareRunsMode=CHART"
ARM_TAG = "arm"
LONGEST = 5000  # characters of an experiment tag


class Chart(NamedTuple):
    """One chart: the metric, and the scale of its axis; bars where there is one value per run."""

    metric: str
    scale: str = "bar"


SECTIONS: Mapping[str, Sequence[Chart]] = {
    "Failures": (
        Chart("divergence/failed"),
        Chart("final/steps"),
        Chart("divergence/spikes"),
    ),
    "Loss": (
        Chart("val/loss", "log"),
        Chart("train/loss", "log"),
        Chart("train/loss_max", "log"),
    ),
    "Gradient norm": (
        Chart("grad_norm/preclip", "log"),
        Chart("grad_norm/postclip", "log"),
        Chart("grad_norm/preclip_max", "log"),
        Chart("grad_norm/clipped_fraction", "linear"),
    ),
    "Updates": (
        Chart("divergence/update_ratio", "log"),
        Chart("divergence/update_ratio_max", "log"),
        Chart("lr", "linear"),
    ),
    "Quality": (
        Chart("final/val_loss"),
        Chart("final/amp_ssim"),
        Chart("final/phase_ssim"),
    ),
}


def view_state(parent: str, arms: Sequence[str]) -> str:
    """The page's state, as JSON, for the study whose parent run this is; its arms' runs are folded away."""
    state = {
        "searchFilter": f"tags.`mlflow.parentRunId` = '{parent}'",
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": ARM_TAG}]},
        "runsHiddenMode": "SHOW_ALL",
        "isAccordionReordered": True,
        "compareRunSections": [{"uuid": s, "name": s, "display": True, "isReordered": True} for s in SECTIONS],
        "compareRunCharts": [_chart(section, chart) for section, charts in SECTIONS.items() for chart in charts],
    }
    folded = state | {"groupsExpanded": {f"tag.{ARM_TAG}.{arm}": False for arm in arms}}
    text = json.dumps(folded, separators=(",", ":"))
    return text if len(text) <= LONGEST else json.dumps(state, separators=(",", ":"))


def _chart(section: str, chart: Chart) -> dict[str, Any]:
    said: dict[str, Any] = {
        "uuid": chart.metric,
        "metricSectionId": section,
        "metricKey": chart.metric,
        "runsCountToCompare": 100,
        "type": "BAR" if chart.scale == "bar" else "LINE",
    }
    return said if chart.scale == "bar" else said | {"scaleType": chart.scale, "xAxisKey": "step", "lineSmoothness": 0}
