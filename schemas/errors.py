"""What a user did wrong, told in one line."""

from __future__ import annotations


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, where (file, column, feature or flag), and the remedy.

    The `genrank` command prints it as `error: ...` and exits with status 1; no traceback.
    """
