"""A synthetic marketplace whose true click probabilities are known: its generator and its feature schema."""
