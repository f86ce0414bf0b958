"""A schema for people and files: YAML and JSON, and the feature catalogue."""
