"""MovieLens-1M as sequences: which film does someone rate next?"""
