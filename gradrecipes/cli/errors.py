"""What went wrong on the user's side of the command line."""

from __future__ import annotations


class UsageError(Exception):
    """An error that the user can fix; the command line prints its one line and returns 2."""
