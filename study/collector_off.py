"""Loaded first by the process that workers are forked from: no collections while modules load, of which all stay.

They would find nothing, and take a fifth of the time; :mod:`study.frozen`, loaded last, turns them on again.
"""

from __future__ import annotations

import gc

gc.disable()
