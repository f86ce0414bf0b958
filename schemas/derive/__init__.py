"""What follows from a declaration: what rows offer, logical tables, the sample's Arrow schema, fingerprints and sizes."""
