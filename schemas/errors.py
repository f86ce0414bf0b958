"""What a user did wrong, in one line."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, where (file, column, feature or flag), and the remedy.

    The `genrank` command prints it as `error: ...` and exits with status 1; no traceback.
    """


class SchemaError(UserError):
    """A declaration that doesn't hold: every mistake, one a line."""

    def __init__(self, where: str, mistakes: Sequence[str]) -> None:
        self.mistakes = tuple(mistakes)
        """Each in one line: where it is, what is wrong, and the remedy."""
        many = f"{len(self.mistakes)} mistakes:\n  " if len(self.mistakes) > 1 else ""
        super().__init__(f"{where}: {many}" + "\n  ".join(self.mistakes))
