"""`genrank scale`: what more history, width and depth bring for the operations that they cost."""
