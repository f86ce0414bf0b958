"""Scores outside of training: batches of stored samples, requests, users whose keys and values are kept."""
