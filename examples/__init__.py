"""One folder a dataset: its schema and the adapter from its public files."""
