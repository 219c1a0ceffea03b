"""Loaded last by the process that workers are forked from: of what it has loaded by then nothing is ever garbage.

A collection would look at all of it again, in every worker, each of which gets a copy of the memory that it looks at;
and the end of the process, for which whoever reads its output has to wait, would take a second longer.
"""

from __future__ import annotations

import gc

gc.freeze()
gc.enable()
