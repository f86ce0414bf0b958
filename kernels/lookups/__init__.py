"""All lookups of a batch in three launches: ids to rows of tables, rows to features' columns, and the columns' gradients back to rows.

A feature is an instruction, a row of a small table of integers; a launch has a program for each block of rows of each instruction. Which
features there are is known when a model is made (`tokenization.merged_lookups` writes the instructions); where a batch's columns lie, and
how many rows they have, comes with the batch as a second table: one copy to the device.

instructions.py  what an instruction holds
gpu.py           launches; triton_rows.py and triton_vectors.py: the kernels

The definition, and what runs on a CPU, is `tokenization`'s feature by feature: `features.GroupEncoder`, `embedding.Embeddings` and
`feature_norm.FeatureNorm`. The kernels serve GPUs alone, where the launches of that path take longer than its work.
"""
