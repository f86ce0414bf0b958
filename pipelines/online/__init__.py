"""A request's features as of now, in process: what the batch build would store of the same exposures, to the bit.

    features.py    OnlineFeatures: loads what the last build read, takes events as they happen, makes requests
    shown.py       what a caller gives as exposures
    exposures.py   exposures normalized as the build does, by a plan that the schema alone decides; conditions.py spares it SQL
    snapshots.py   a snapshot's days, by key;  profiles.py  the user group, from them
    crossed.py     cross features, by the build's own formulas, asked of
    standing.py    events of many keys, sorted and summed up once, searched by every request
    timelines.py   sequences of all users, cut for a request
    state.py       all of it, of what was loaded and of what came since: never changed, replaced as a whole
    rows.py        added events, by the build's own normalizer

What every function here may differ in from the build is where rows are found, never what is computed of them.
"""
