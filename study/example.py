"""``python -m study.example FILE``: write a small simulated scan as a CXI file, to try the programs on."""

from __future__ import annotations

import sys

from study.command import FINISHED, Parser, run_command


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(prog="python -m study.example", description=__doc__)
    parser.add_argument("file", metavar="FILE", help="the CXI file to write; must not exist")
    return parser


def command() -> int:
    """Write the scan, and say what to do with it."""
    namespace = build_parser().parse_args()
    from ptycho.example_scan import write_example_scan

    path = write_example_scan(namespace.file)
    sys.stdout.write(f"{path}: written; next: python -m study.inspect {path}\n")
    return FINISHED


if __name__ == "__main__":
    sys.exit(run_command(command))
