"""Real scans from files, all to one type; ``formats`` lists what is read, ``geometry`` says how units are converted."""

from ptycho.readers.frames import zero_frequency_at_corner
from ptycho.readers.scans import read_scan, scan_sources
from ptycho.scan import group_neighbours, split_scan

__all__ = [
    "group_neighbours",
    "read_scan",
    "scan_sources",
    "split_scan",
    "zero_frequency_at_corner",
]
