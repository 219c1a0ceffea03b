"""``python -m study.shootout``: train once per regime, clipping algorithm and seed; compare; report.

The same command again goes on where it was left: runs that finished are not repeated, and a
finished study only has its report written anew.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ptycho.config.config import DataConfig, ModelConfig
from ptycho.config.plugins import PluginConfig
from ptycho.config.settings import add_flags, chosen
from ptycho_torch.config_params import TrainingConfig
from study.command import FINISHED, Parser, PrintCompletion, run_command
from study.settings import OF_THE_DESIGN, CommandLine, RunSettings, StudyConfig, split_settings
from study.short_help import short_help
from study.tracking_uri import redact_words

if TYPE_CHECKING:
    from study.plan import Plan

USAGE = "python -m study.shootout [SETTING ...]"
ABOUT = "Train once per regime, clipping algorithm and seed; compare; report. The same command again goes on."
OWN: tuple[type, ...] = (StudyConfig, PluginConfig, CommandLine)


GROUPS: dict[str, type] = {"data": DataConfig, "network": ModelConfig, "training": TrainingConfig}


def build_parser() -> Parser:
    """The command line of a study: its own settings, and one flag for every setting of its runs."""
    parser = Parser(prog="python -m study.shootout", usage=USAGE, description=__doc__, short=brief)
    study = parser.add_argument_group("study")
    for cls in OWN:
        add_flags(study, cls)
    for title, cls in GROUPS.items():
        add_flags(parser.add_argument_group(f"{title}, for every run"), cls, skip=OF_THE_DESIGN)
    parser.add_argument("--print-completion", action=PrintCompletion, command="stability-shootout")
    return parser


def brief() -> str:
    """The help that fits a screen."""
    return short_help(USAGE, ABOUT, OWN, GROUPS, skip=OF_THE_DESIGN)


def plan_of(namespace: argparse.Namespace, command: str) -> Plan:
    """The study that a command line asks for; its flags win over the file that it names.

    Raises:
        InputError: a bad setting, a file that cannot be used.
    """
    from study.plan import make_plan

    given = {**chosen(namespace, StudyConfig), **chosen(namespace, RunSettings)}
    file = CommandLine(**chosen(namespace, CommandLine)).config
    if file is not None:
        from study.config_file import read_config

        given = {**read_config(Path(file)), **given}
    return make_plan(*split_settings(given), command)


def command() -> int:
    """Run a study from the command line."""
    from rich.console import Console

    namespace = build_parser().parse_args()
    plan = plan_of(namespace, shlex.join(["python", "-m", "study.shootout", *redact_words(sys.argv[1:])]))
    console = Console(highlight=False)
    if CommandLine(**chosen(namespace, CommandLine)).dry_run:
        from study.dry_run import preview

        preview(plan, console)
        return FINISHED
    from study.engines import HandedOverError
    from study.progress import results_table
    from study.running import run_study

    try:
        report = run_study(plan)
    except HandedOverError as handed:
        sys.stdout.write(f"{handed}\n")
        return FINISHED
    summary = json.loads((plan.out / "summary.json").read_text(encoding="utf-8"))
    console.print(results_table(summary))
    console.print(summary["verdict"]["headline"], markup=False)
    console.print(f"report: {report}", soft_wrap=True, markup=False)
    return FINISHED


def main() -> int:
    """Entry point of the console command."""
    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
