"""Dynamic vocabularies on a GPU: ids enter, get rows, lose them and are forgotten without the host.

layout.py            what the kernels read of a vocabulary, and where its counters lie
gpu.py               the launches of a step, of a lookup and of new rows' initial weights
triton_slots.py      the table of slots: finding ids, entering them, moving to empty slots
triton_update.py     a step: sightings, which ids get rows, which rows are free
triton_select.py     which rows are evicted and which waiting ids are forgotten: a radix select over (score, row or id)
triton_reset.py      initial weights of rows with a new owner
"""
