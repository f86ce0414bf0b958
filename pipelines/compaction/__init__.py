"""Past days compacted, so that a day hardly costs more for all that lies behind it."""
