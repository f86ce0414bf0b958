"""How large what is compacted gets."""

from __future__ import annotations

LARGEST = 16
"""Days of the largest tile, a power of 4: with twos there would be fewer files to read, and twice as many to make and keep."""
SHORTEST = 3
"""Shorter runs of days are read from their partials: fewer rows, but not fewer files."""
PERIOD = 8
"""Days from one compacted history to the next."""
CHUNK = 1 << 20
"""Rows of partials that a task holds before it merges what may be merged."""
