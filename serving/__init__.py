"""Scores outside training: requests, scorers, and what serves them."""
