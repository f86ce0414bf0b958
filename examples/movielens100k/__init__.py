"""MovieLens-100K as an exposure log: every rating is a film that was shown, and liked or not."""
