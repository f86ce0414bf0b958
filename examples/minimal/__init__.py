"""The smallest schema that trains: two event logs, one history, one statistic, one task."""
