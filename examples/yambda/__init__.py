"""Yambda: listens, likes and skips of a music service in time order; the adapter from its public files, and its feature schema."""
