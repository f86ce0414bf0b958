"""One sample, drawn: its tokens by group with values and times, and what sees what."""

from __future__ import annotations

from pathlib import Path

from genrank.schemas.console import stdout
from genrank.schemas.errors import UserError
from genrank.schemas.schema import Schema
from genrank.tokenization.inspect_sample import load_sample


def show_sample(samples_root: Path | str, sample_id: str, *, schema: Schema, png: Path | None = None) -> None:
    """Draw a sample in the terminal, or into a PNG file.

    Args:
        samples_root: the folder with `dt=YYYY-MM-DD` folders.
        sample_id: as stored, `<user>:<day>:<chunk>`.
        schema: what the samples were built from.
        png: the file to write; None prints instead.

    Raises:
        UserError: no such sample, or a file of another kind.
    """
    if png is not None and png.suffix != ".png":
        raise UserError(f"--png {png}: end it in .png")
    sample = load_sample(samples_root, sample_id, schema)
    if png is None:
        from genrank.tokenization.present.sample_terminal import print_sample

        print_sample(sample, stdout())
    else:
        # matplotlib takes a second to import and is needed for pictures only.
        from genrank.tokenization.present.sample_figure import draw_sample

        png.parent.mkdir(parents=True, exist_ok=True)
        draw_sample(sample, png)
