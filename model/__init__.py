"""Encoders, heads, losses, metrics, trainer, evaluation."""
