"""Baselines a sceptic wants, on the same samples, reader, embeddings and trainer."""
