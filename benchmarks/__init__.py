"""One command each; results are JSON beside a page that says what they mean."""
