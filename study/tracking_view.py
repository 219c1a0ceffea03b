"""The view of a study that MLflow's page opens with: runs grouped into arms, mean lines, failures first.

MLflow keeps such views as an experiment tag that holds the page's state. Its form is undocumented; a page
that cannot read it says so and shows its usual view.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from study.run_metrics import metric_name

VIEW_TAG = "mlflow.sharedViewState.study"
VIEW_QUERY = "viewStateShareKey=study&compareRunsMode=CHART"
ARM_TAG = "arm"
LONGEST = 5000  # characters of an experiment tag
PACKED = "deflate;"  # how the page itself marks a state that it has packed


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


FURTHER = ("divergence", "val", "final")  # sections that the page makes of metrics without a chart above


def arms_of(study: Mapping[str, Any]) -> list[str]:
    """``<regime>/<algorithm>`` of every arm that a study's description names."""
    return [f"{r['name']}/{a['name']}" for r in study.get("regimes", ()) for a in study.get("algorithms", ())]


def view_state(parent: str, arms: Sequence[str]) -> str:
    """The page's state for the study whose parent run this is: JSON, packed where a tag has no room for it.

    The arms' runs are folded away, and so are the sections that the page would open for metrics that none of these
    charts shows.
    """
    prefixes = (f"arm/{metric_name(name)}" for arm in arms for name in (arm, arm.rpartition("/")[2]))
    folded = [*FURTHER, *dict.fromkeys(prefixes)]
    state: dict[str, Any] = {
        "searchFilter": f"tags.`mlflow.parentRunId` = '{parent}'",
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": ARM_TAG}]},
        "groupsExpanded": {f"tag.{ARM_TAG}.{arm}": False for arm in arms},
        "runsHiddenMode": "SHOW_ALL",
        "isAccordionReordered": True,
        "compareRunSections": [_section(name, name in SECTIONS) for name in (*SECTIONS, *folded)],
        "compareRunCharts": [_chart(section, chart) for section, charts in SECTIONS.items() for chart in charts],
    }
    text = json.dumps(state, separators=(",", ":"))
    return text if len(text) <= LONGEST else PACKED + base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def read_view_state(text: str) -> dict[str, Any]:
    """The state that :func:`view_state` wrote."""
    packed = text.startswith(PACKED)
    content = zlib.decompress(base64.b64decode(text.removeprefix(PACKED))).decode() if packed else text
    state: dict[str, Any] = json.loads(content)
    return state


def _section(name: str, shown: bool) -> dict[str, Any]:
    return {"uuid": name, "name": name, "display": shown, "isReordered": True}


def _chart(section: str, chart: Chart) -> dict[str, Any]:
    said: dict[str, Any] = {
        "uuid": chart.metric,
        "metricSectionId": section,
        "metricKey": chart.metric,
        "runsCountToCompare": 100,
        "type": "BAR" if chart.scale == "bar" else "LINE",
    }
    return said if chart.scale == "bar" else said | {"scaleType": chart.scale, "xAxisKey": "step", "lineSmoothness": 0}
