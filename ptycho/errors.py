"""The one exception a user's mistake raises."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input: a file, a setting or a name that cannot be used.

    Its text is one line that names the file or setting, the value found and what is allowed.
    Commands print it on stderr and exit with status 2.
    """


def unknown_name(setting: str, value: object, known: Iterable[str]) -> InputError:
    """The error for a name outside a closed set, with the nearest known name as a suggestion.

    >>> str(unknown_name("algo", "agd", ["norm", "agc"]))
    "algo: unknown value 'agd'; known: norm, agc (did you mean 'agc'?)"
    """
    names = list(known)
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return InputError(f"{setting}: unknown value {value!r}; known: {', '.join(names)}{hint}")
