"""What the commands share: a user's mistake is one line on stderr and exit status 2."""

from __future__ import annotations

import argparse
import atexit
import gc
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from ptycho.errors import InputError, unknown_name

FINISHED, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
ON = "everything finished so far is kept, and the same command goes on from here"
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
logger = logging.getLogger(__name__)


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, and which knows no abbreviations.

    Args:
        short: makes the help that fits a screen; every setting is then explained by ``--help-all``.
    """

    def __init__(self, *args: object, short: Callable[[], str] | None = None, **kwargs: object) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.short = short
        if short is not None:
            self.add_argument("--help-all", action=_HelpAll, help="show every setting and exit")

    def print_help(self, file: Any = None) -> None:
        (file or sys.stdout).write(self.format_help() if self.short is None else self.short())

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """A flag with nothing behind its equals sign counts as not given: so MLproject hands on what has no value."""
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([w for w in words if not re.fullmatch(r"--[\w-]+=", w)], namespace)

    def error(self, message: str) -> NoReturn:
        raise InputError("".join(c if c.isprintable() else "?" for c in message))


class _HelpAll(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        sys.stdout.write(parser.format_help())
        parser.exit()


class PrintCompletion(argparse.Action):
    """Print what a shell has to know to complete a console command's flags."""

    SHELLS = ("bash", "zsh")

    def __init__(self, option_strings: Sequence[str], dest: str, command: str) -> None:
        about = "print the shell's completion of this command and exit"
        super().__init__(option_strings, argparse.SUPPRESS, default=argparse.SUPPRESS, metavar="SHELL", help=about)
        self.command = command

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, _: object = None) -> NoReturn:
        if values not in self.SHELLS:
            raise unknown_name("print-completion", values, self.SHELLS)
        try:
            import shtab
        except ModuleNotFoundError:
            raise InputError("print-completion: shtab is not installed; allowed after pip install shtab") from None
        parser.prog = self.command
        for action in parser._actions:
            if isinstance(action.metavar, str) and action.metavar.startswith("{"):
                action.choices = action.metavar[1:-1].split(",")
        sys.stdout.write(shtab.complete(parser, values))
        parser.exit()


def run_command(main: Callable[[], int]) -> int:
    """Run a command's body; turn what may happen to it into one line on stderr and an exit status.

    Bad input is 2; a disk that fails is 1. The first Ctrl-C, SIGTERM or SIGHUP raises KeyboardInterrupt in
    the body, which finishes cleanly; the second does so again, and then the process ends without waiting for
    anything; both are 130.
    """
    heard: list[int] = []
    _listen(heard)
    gc.set_threshold(200_000, 20, 20)  # modules are many objects and no garbage: loading them is a second shorter
    atexit.register(gc.freeze)  # or a second goes by at the end with taking MLflow, pandas and the like to pieces
    try:
        _start_log(os.environ.get("LOGLEVEL", "WARNING").upper())
        return main()
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return BAD_INPUT
    except OSError as error:
        logger.debug("where it happened", exc_info=True)
        where = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"error: {where}{error.strerror or error}; {ON}\n")
        return FAILED
    except KeyboardInterrupt:
        sys.stderr.write(f"interrupted; {ON}\n")
        if len(heard) > 1:
            sys.stderr.flush()
            os._exit(INTERRUPTED)
        return INTERRUPTED


def _start_log(level: str) -> None:
    if not isinstance(logging.getLevelName(level), int):  # what logging says of a name that it does not know
        raise unknown_name("LOGLEVEL", level, LOG_LEVELS)
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")


def _listen(heard: list[int]) -> None:
    def interrupt(number: int, _: object) -> NoReturn:
        heard.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, interrupt)
