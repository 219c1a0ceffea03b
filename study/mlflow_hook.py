"""Makes the plain ``mlflow run . -P algo=agc`` work in the environment that this project is installed in.

MLflow's default would build a new environment through pyenv, and put the run into the experiment
"Default". MLflow loads the providers of a default experiment whenever it is imported (entry point group
``mlflow.default_experiment_provider``). Ours does nothing, except in a ``mlflow run`` of this very
project; there it chooses ``--env-manager local`` unless another was asked for, this interpreter, one
absolute store for both processes, and our experiment.

MLflow is still half imported when this module is loaded, so nothing here imports it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

from ptycho.errors import InputError
from study.command import BAD_INPUT
from study.tracking_uri import EXPERIMENT, check_store, is_project, resolve_tracking_uri

CHOOSES_ENVIRONMENT = ("--env-manager", "--backend", "-b")


class ShootoutExperimentProvider:
    """MLflow's default experiment in a ``mlflow run`` of this project; see the module."""

    def __init__(self) -> None:
        self._active = runs_this_project(sys.argv)
        if self._active:
            prepare(sys.argv)

    def in_context(self) -> bool:
        """Whether this is a ``mlflow run`` of this project."""
        return self._active

    def get_experiment_id(self) -> str:
        """The study's experiment, made where it is not there."""
        from study.tracking import experiment_id

        try:
            return experiment_id(resolve_tracking_uri(), EXPERIMENT)
        except InputError as error:
            _refuse(error)


def runs_this_project(argv: list[str]) -> bool:
    """Whether a command line is ``mlflow run`` with a folder that holds our MLproject.

    ``-m`` stands for the program while ``python -m mlflow`` imports its package.
    """
    if Path(argv[0]).name not in ("mlflow", "-m", "__main__.py") or "run" not in argv[1:4]:
        return False
    rest = argv[argv.index("run") + 1 :]
    return any(is_project(Path(word.removeprefix("file://"))) for word in rest if not word.startswith("-"))


def prepare(argv: list[str]) -> None:
    """Set what ``mlflow run`` and the command that it starts will find; exits where the store cannot be used."""
    if not any(word.split("=")[0] in CHOOSES_ENVIRONMENT for word in argv):
        argv[argv.index("run") + 1 : argv.index("run") + 1] = ["--env-manager", "local"]
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    try:
        os.environ["MLFLOW_TRACKING_URI"] = resolve_tracking_uri()
        check_store(os.environ["MLFLOW_TRACKING_URI"])
    except InputError as error:
        _refuse(error)


def _refuse(error: InputError) -> NoReturn:
    sys.stderr.write(f"error: {error}\n")
    raise SystemExit(BAD_INPUT)
