"""Generative ranking, from exposure log to score.

The packages below are folders at the top of the repository, linked here so that they have one import name: `genrank.schemas`, `genrank.model`, ...
"""
