"""The `genrank` command: thin, imports lazily, one clear line on bad input."""

from __future__ import annotations

import typer

app = typer.Typer(name="genrank", no_args_is_help=True, add_completion=False, help=__doc__)


@app.callback()
def root() -> None:
    """Generative ranking from exposure log to score."""


def main() -> None:
    app()


if __name__ == "__main__":
    main()
