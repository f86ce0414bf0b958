"""Past days compacted: what a build reads in place of the partials of a whole look-back, so that a day hardly costs more for all that lies behind it.

Two kinds, both `OUT/blocks/<use>/dt=<last day>/<key>/bucket-NNNNN.arrow` and their `block.json`:

- **Tiles** of a log at the keys of a set of cross features (`cross_features.tile`): one day, or 4 or 16 aligned days merged
  from four parts, so that a window of any length is a handful of tiles.
- **Histories** of one entry of a sequence: the newest rows of each user as of the start of every `sizes.PERIOD`th day
  (`sequences.newest`), made from the one before it, where that still holds, and the days since.

Each says which partials it covers, by their keys, and serves a build only if it agrees with the build's plan on every day the
build depends on: a late row changes the partial's key, so none is ever stale. It holds nothing that its partials don't, and no
day needs it: without one the partials are read. They are made by the second of two builds that follow each other day by day, so
that a single day built once doesn't pay for what nobody will read again.

| module | job |
|---|---|
| `uses` | what past days are read for |
| `plan` | what a build reads of them, and what is missing |
| `reader` | reading it, in tasks |
| `writer` | making what is missing, in tasks, and committing it |
| `cleanup` | what no build will read again |
"""
