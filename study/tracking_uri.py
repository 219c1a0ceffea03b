"""Where the tracking store is: found once, made absolute, refused early when it cannot be used.

Nothing here imports MLflow, so that a wrong address costs no more than the time to read it.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import SplitResult, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

from ptycho.errors import InputError

EXPERIMENT = "stability-shootout"
PROJECT_NAME = "stability-shootout"
ALLOWED = "sqlite:///FILE, http(s)://HOST, postgresql://HOST/NAME, mysql://HOST/NAME or mssql://HOST/NAME"
SERVERS = {"http": 80, "https": 443}
DATABASES = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
SQLITE_HEADER = b"SQLite format 3\x00"
CONNECT_TIMEOUT_S = 4.0
LAUNCHED_BY = ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME")


def is_project(folder: Path) -> bool:
    """Whether ``folder`` holds the MLproject file of this study."""
    try:
        text = (folder / "MLproject").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return re.search(rf"^name:\s*{PROJECT_NAME}\s*$", text, re.MULTILINE) is not None


def project_folder() -> Path:
    """The checkout this package runs from; the working directory where it was installed without one."""
    checkout = Path(__file__).resolve().parents[1]
    return checkout if is_project(checkout) else Path.cwd()


def resolve_tracking_uri(flag: str | None = None) -> str:
    """The address of the tracking store: the flag, ``MLFLOW_TRACKING_URI``, or a SQLite file of the project.

    Relative SQLite files are made absolute against the working directory, so that every process
    means the same one.

    Raises:
        InputError: a folder store (``file:``), a store in memory, or an address of another kind.
    """
    setting = "--tracking-uri" if flag else "MLFLOW_TRACKING_URI"
    uri = flag or os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        return f"sqlite:///{project_folder() / 'mlflow.db'}"
    kind, parts = _kind(uri), _split(setting, uri)
    if kind == "sqlite":
        return _absolute_sqlite(setting, uri)
    if kind not in SERVERS and kind not in DATABASES:
        what = "a folder store, which MLflow has given up" if kind in ("", "file") else f"of unknown kind {kind!r}"
        raise InputError(f"{setting}: {redact(uri)!r} is {what}; allowed: {ALLOWED}")
    if not parts.hostname:
        raise InputError(f"{setting}: {redact(uri)!r} names no host; allowed: {ALLOWED}")
    return uri


def redact(uri: str) -> str:
    """The address without user, password and query, for messages and records.

    >>> redact("postgresql://me:secret@db/mlflow?password=x")
    'postgresql://***@db/mlflow?***'
    """
    try:
        parts = urlsplit(uri)
    except ValueError:
        return f"{uri.partition(':')[0]}:***"
    host = parts.netloc.rpartition("@")
    netloc = f"***@{host[2]}" if host[1] else parts.netloc
    plain = urlunsplit(SplitResult(parts.scheme, netloc, parts.path, "***" if parts.query else "", ""))
    # urlunsplit drops the empty authority of sqlite:///file
    return plain.replace(f"{parts.scheme}:/", f"{parts.scheme}:///", 1) if uri.startswith("sqlite:///") else plain


def redact_text(text: str) -> str:
    """A text of somebody else's, such as an error, without what may be a credential: too much rather than too little.

    >>> redact_text("no answer from http://me:se@cret@host/api?token=x, password=y")
    'no answer from http://***@host/api?***, password=***'
    """
    text = re.sub(r"//[^\s'\"]*@", "//***@", text)
    text = re.sub(r"\?[^\s'\"),]+", "?***", text)
    return re.sub(r"(?i)\b(password|passwd|pwd|secret|token)=[^\s&'\"),]+", r"\1=***", text)


def redact_value(value: str) -> str:
    """A setting's value: an address without its credentials, anything else as it is."""
    return redact(value) if "://" in value else value


def redact_words(words: Iterable[str]) -> list[str]:
    """A command line's words without the credentials in the addresses among them.

    >>> redact_words(["--seeds", "2", "--tracking-uri=http://me:secret@host"])
    ['--seeds', '2', '--tracking-uri=http://***@host']
    """
    split = [re.fullmatch(r"(--[\w-]+=)?(.*)", word, re.DOTALL) for word in words]
    return [(m[1] or "") + redact_value(m[2]) for m in split if m]


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite address; None for any other address."""
    if _kind(uri) != "sqlite":
        return None
    return Path(uri.partition(":///")[2].partition("?")[0])


def is_server(uri: str) -> bool:
    """Whether the address is that of an MLflow server, and not of its database."""
    return _kind(uri) in SERVERS


def check_store(uri: str) -> None:
    """Make sure that the store can be spoken to, within a few seconds.

    Raises:
        InputError: one line that names the address (without credentials) and what is wrong.
    """
    file = sqlite_file(uri)
    if file is not None:
        _check_file(uri, file)
        return
    parts, kind = _split("tracking URI", uri), _kind(uri)
    if kind in getproxies() and not proxy_bypass(parts.hostname or ""):
        return
    address = (parts.hostname or "", parts.port or SERVERS.get(kind) or DATABASES[kind])
    try:
        with socket.create_connection(address, timeout=CONNECT_TIMEOUT_S):
            pass
    except OSError as error:
        raise InputError(
            f"tracking URI: {redact(uri)} cannot be reached ({error.strerror or error}); start the server, "
            "or leave the setting out to use a local SQLite file"
        ) from None


def _kind(uri: str) -> str:
    head, colon, _ = uri.partition(":")
    return head.partition("+")[0].lower() if colon else ""


def _split(setting: str, uri: str) -> SplitResult:
    try:
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError:
        raise InputError(f"{setting}: {redact(uri)!r} is no address; allowed: {ALLOWED}") from None
    return parts


def _absolute_sqlite(setting: str, uri: str) -> str:
    scheme, slashes, rest = uri.partition(":///")
    name, question, query = rest.partition("?")
    if not slashes or not name or name == ":memory:":
        raise InputError(f"{setting}: {redact(uri)!r} names no file, and would keep nothing; allowed: {ALLOWED}")
    return f"{scheme}:///{Path(name).absolute()}{question}{query}"


def _check_file(uri: str, file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab"):
            pass
        with file.open("rb") as stream:
            header = stream.read(len(SQLITE_HEADER))
    except OSError as error:
        raise InputError(f"tracking URI: {redact(uri)} cannot be written ({error.strerror})") from None
    if header and header != SQLITE_HEADER:
        raise InputError(f"tracking URI: {file} is not a SQLite file; allowed: a new file, or one that MLflow made")


def worker_environment() -> dict[str, str]:
    """The environment for a training process: nothing in it makes MLflow write into the study's parent run."""
    return {name: value for name, value in os.environ.items() if name not in LAUNCHED_BY}
