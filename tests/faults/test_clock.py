"""A study during which the clock of the machine is set back by a day."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*path_separator.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
DAY_S = 86_400
CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* Seconds by which the clock is late: a day once the file named by SET_BACK is there. */
static time_t late(void) {
    const char *mark = getenv("SET_BACK");
    return mark && access(mark, F_OK) == 0 ? 86400 : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec -= late();
    return failed;
}

int gettimeofday(struct timeval *now, void *zone) {
    int (*real)(struct timeval *, void *) = dlsym(RTLD_NEXT, "gettimeofday");
    int failed = real(now, zone);
    if (!failed) now->tv_sec -= late();
    return failed;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
"""


@pytest.fixture
def clock(tmp_path: Path) -> Path:
    """A library that sets the clock back for the processes that load it."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler on this machine")
    (tmp_path / "clock.c").write_text(CLOCK)
    command = [compiler, "-shared", "-fPIC", "-o", tmp_path / "clock.so", tmp_path / "clock.c", "-ldl"]
    subprocess.run(command, check=True)
    return tmp_path / "clock.so"


def test_a_clock_that_is_set_back_changes_nothing(
    clock: Path, toy_study: Any, undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "now"
    study = toy_study(tmp_path / "study", 4)
    with monkeypatch.context() as patch:
        patch.setenv("LD_PRELOAD", str(clock))
        patch.setenv("SET_BACK", str(mark))
        process = study.start("--time-limit", "200")
        study.after_a_run(process)
        mark.touch()
        asked = subprocess.run(
            [sys.executable, "-c", "import time; print(time.time())"], capture_output=True, check=True
        )
        status, stderr = study.end_of(process)
    assert DAY_S - 300 < time.time() - float(asked.stdout) < DAY_S + 300
    assert (status, "Traceback" in stderr) == (0, False), stderr
    study.assert_same_numbers(undisturbed)
    found = study.stored()
    assert [run.info.status for run in found] == ["FINISHED"] * 9
    ended = [run.info.end_time / 1000 for run in found]
    assert min(ended) < time.time() - DAY_S + 300 < max(ended), "some ended before, some after"
    results = [json.loads(path.read_text()) for path in study.out.glob("runs/*/result.json")]
    assert all(0 < result["wall_s"] < 200 for result in results)
