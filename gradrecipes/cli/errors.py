"""What went wrong on the user's side of the command line."""

from __future__ import annotations


class UsageError(Exception):
    """Say in one line what the user can mend; the command line prints it and returns 2."""
