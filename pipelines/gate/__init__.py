"""The quality gate: what a day must pass between being staged and being published, on either engine.

    staged files --recount (staged, invariants)--> what they hold, file by file; the samples of a few users
    raw logs --recompute (users, raw_log, recompute, compare)--> what those users' samples must be
    published days --drift--> how far rows, label rates and features have moved
    all counts --judge (expectations)--> a suite's verdict; publish, or stop with the gate's own lines
    suite and counts --data_docs--> Great Expectations' page of them, of a day that stops or when it is asked for

Nothing here trusts what the builder counted while it made rows: files are read back from where they will be published from, and the few
users' samples are worked out again from the raw logs by other code than the builder's.
"""
