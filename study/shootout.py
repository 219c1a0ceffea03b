"""``python -m study.shootout``: train once per regime, clipping algorithm and seed; compare; report.

The same command again goes on where it was left: runs that finished are not repeated, and a
finished study only has its report written anew.
"""

from __future__ import annotations

import json
import shlex
import sys

from ptycho.config.config import DataConfig, ModelConfig
from ptycho.config.plugins import PluginConfig
from ptycho.config.settings import add_flags, chosen
from ptycho_torch.config_params import TrainingConfig
from study.command import FINISHED, Parser, run_command
from study.settings import OF_THE_DESIGN, RunSettings, StudyConfig
from study.tracking_uri import redact_words


def build_parser() -> Parser:
    """The command line of a study: its own settings, and one flag for every setting of its runs."""
    parser = Parser(prog="python -m study.shootout", description=__doc__)
    add_flags(parser.add_argument_group("study"), StudyConfig)
    for title, cls in (("data", DataConfig), ("network", ModelConfig), ("training", TrainingConfig)):
        add_flags(parser.add_argument_group(f"{title}, for every run"), cls, skip=OF_THE_DESIGN)
    add_flags(parser.add_argument_group("your own algorithms, networks and faults"), PluginConfig)
    return parser


def command() -> int:
    """Run a study from the command line."""
    from rich.console import Console

    from study.engines import HandedOverError
    from study.plan import make_plan
    from study.progress import results_table
    from study.running import run_study

    namespace = build_parser().parse_args()
    words = shlex.join(["python", "-m", "study.shootout", *redact_words(sys.argv[1:])])
    plan = make_plan(StudyConfig(**chosen(namespace, StudyConfig)), chosen(namespace, RunSettings), words)
    try:
        report = run_study(plan)
    except HandedOverError as handed:
        sys.stdout.write(f"{handed}\n")
        return FINISHED
    summary = json.loads((plan.out / "summary.json").read_text(encoding="utf-8"))
    console = Console(highlight=False)
    console.print(results_table(summary))
    console.print(summary["verdict"]["headline"], markup=False)
    console.print(f"report: {report}", soft_wrap=True, markup=False)
    return FINISHED


def main() -> int:
    """Entry point of the console command."""
    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
