"""What the commands share: a user's mistake is one line on stderr and exit status 2."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from ptycho.errors import InputError

FINISHED, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, and which knows no abbreviations."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """A flag with nothing behind its equals sign counts as not given: so MLproject hands on what has no value."""
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([w for w in words if not re.fullmatch(r"--[\w-]+=", w)], namespace)

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def run_command(main: Callable[[], int]) -> int:
    """Run a command's body; turn bad input into one line, and Ctrl-C or SIGTERM into its exit status."""
    logging.basicConfig(
        level=os.environ.get("LOGLEVEL", "WARNING").upper(), format="%(levelname)s %(name)s: %(message)s"
    )
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return main()
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return BAD_INPUT
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; everything finished so far is kept, and the same command goes on from here\n")
        return INTERRUPTED
