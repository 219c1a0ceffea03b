"""Settings in a YAML file: read for ``--config``, written beside every study so that it can be repeated."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ptycho.config.plugins import DIGEST
from ptycho.errors import InputError
from study.settings import StudyConfig, require_known
from study.tracking_uri import redact

LARGEST = 100_000  # bytes: every setting, a long list of arms and room for comments


class _Loader(yaml.SafeLoader):
    """YAML without what can make a small file a large value, or hide one setting behind another."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"line {self.peek_event().start_mark.line + 1}: an alias")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = [key.value for key, _ in node.value]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise yaml.YAMLError(f"{twice} is there twice")
        return super().construct_mapping(node, deep)


def read_config(path: Path) -> dict[str, Any]:
    """The settings of a file by their names, with values as YAML has them; ``study.settings`` makes sense of those.

    Raises:
        InputError: no such file, one that is no list of settings, or a name that is no setting.
    """
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST + 1)
    except OSError as error:
        raise InputError(f"config: {path} cannot be read ({error.strerror}); allowed: a YAML file") from None
    if len(text) > LARGEST:
        raise InputError(f"config: {path} has more than {LARGEST} bytes; allowed: settings, one a line")
    try:
        found = yaml.load(text, _Loader)  # a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(f"config: {path} is not read ({said}); allowed: YAML, NAME: VALUE in each line") from None
    found = {} if found is None else found
    if not isinstance(found, dict):
        raise InputError(f"config: {path} holds a {type(found).__name__}; allowed: NAME: VALUE in each line")
    for name in found:
        _require_setting(path, str(name))
    return {str(name).replace("-", "_"): value for name, value in found.items()}


def _require_setting(path: Path, name: str) -> None:
    try:
        require_known(name.replace("-", "_"))
    except InputError as error:
        raise InputError(f"config: {path}: {error}") from None


def write_config(path: Path, config: StudyConfig, overrides: Mapping[str, Any]) -> None:
    """Write what was given to a study; reading it gives the same study. An address with credentials is left out."""
    own = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name == "preset" or getattr(config, field.name) != field.default
    }
    if config.tracking_uri is not None and redact(config.tracking_uri) != config.tracking_uri:
        del own["tracking_uri"]
    own.pop("fresh", None)  # said once: repeated, it would throw away what this study has found
    plain = {name: _plain(value) for name, value in {**own, **overrides}.items()}
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    path.write_text(f"# Repeat this study: python -m study.shootout --config {path.name} --out FOLDER\n{text}", "utf-8")


def _plain(value: Any) -> Any:
    if value is None:
        return "off"
    return [text.partition(DIGEST)[0] for text in value] if isinstance(value, tuple) else value
