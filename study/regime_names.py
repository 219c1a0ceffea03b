"""How regimes that only search something are told by their names; for designs and reports alike."""

from __future__ import annotations

TUNING = "-tuning"  # a regime's name with this is the regime in which its thresholds are chosen
