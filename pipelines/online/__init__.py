"""A request's features as of now, in process: what the batch build would store of the same exposures, to the bit.

    features.py  OnlineFeatures: loads what the last build read, takes events as they happen, makes requests
    rows.py      raw rows normalized as the build does, joined to snapshots in memory
    indexes.py   rows by key and by user, so that a request costs what its own keys and user hold

The statistics, sequences and columns are computed by the batch build's own functions; here is only what finds the few rows they need.
"""
