"""Samples to jagged batches, features to merged embedding tables, embeddings to tokens with their visibility."""
