"""Seeds from named factors through a stable hash, so that the arms of one replicate are paired."""

from __future__ import annotations

import dataclasses
import hashlib


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Seeds:
    """The seeds of one replicate; no algorithm, rate or regime enters them.

    Attributes:
        init: of the initial weights.
        order: of the order of the frames.
        data: of the object, the photon noise, the splits and the faults.
    """

    init: int
    order: int
    data: int


def derive_seed(replicate: int, factor: str) -> int:
    """A 31-bit seed from a replicate's number and a factor's name, the same on every machine.

    >>> derive_seed(0, "init") == derive_seed(0, "init"), derive_seed(0, "init") == derive_seed(0, "data")
    (True, False)
    """
    digest = hashlib.sha256(f"{replicate}/{factor}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def seeds_of(replicate: int) -> Seeds:
    """The seeds of a replicate."""
    return Seeds(**{factor: derive_seed(replicate, factor) for factor in ("init", "order", "data")})
