"""One command each; results are JSON beside a page that says what they mean."""

from pathlib import Path

import genrank

# A copy of the checkout may have lost the links in genrank/: its packages are then found where they are, beside this one.
genrank.__path__.append(str(Path(__file__).parents[1]))
