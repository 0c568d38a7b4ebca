"""What an argument must be, refused in the same words everywhere."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

SMALLEST, LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # of the positive numbers that float32 holds in full
NAMES_SHOWN = 12  # that an error lists


def require_whole(name: str, value: Any, *, least: int, remedy: str) -> None:
    """Refuse what is no whole number, or one that is too small.

    Raises:
        ValueError: With what came and the remedy.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"`{name}` must be a whole number, at least {least}. Received: {name}={value!r}. {remedy}")


def require_number(name: str, value: Any, *, remedy: str) -> None:
    """Refuse what is no finite number; True and False are none.

    Raises:
        ValueError: With what came and the remedy.
    """
    if not is_number(value):
        raise ValueError(f"`{name}` must be a number. Received: {name}={value!r}. {remedy}")


def is_positive(value: Any) -> bool:
    """Say whether a value is a positive number that float32 holds in full, neither as 0 nor as infinity."""
    return is_number(value) and SMALLEST <= value <= LARGEST


def is_number(value: Any) -> bool:
    """Say whether a value is a number that a float can hold; True and False are none."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number beyond 1.8e308
        return False


def require_flag(name: str, value: Any, *, remedy: str) -> None:
    """Refuse what is neither True nor False: a text that reads "no" would count as yes.

    Raises:
        TypeError: With what came and the remedy.
    """
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be True or False. Received: {name}={value!r}. {remedy}")


def require_choice(name: str, value: Any, choices: Any) -> None:
    """Refuse what is not among the choices.

    Raises:
        ValueError: With what came and the choices.
    """
    if not isinstance(value, str | None) or value not in choices:
        listed = ", ".join(str(choice) for choice in choices)
        raise ValueError(f"`{name}` must be one of: {listed}. Received: {name}={value!r}.")


def shown_names(names: Sequence[str]) -> str:
    """Return names for an error that lists what there is; of many the first."""
    return ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")


def require_directory(name: str, value: Any) -> None:
    """Refuse what cannot name a directory; None stands for no directory.

    Raises:
        TypeError: With what came and the remedy.
    """
    if value is not None and not (isinstance(value, str | os.PathLike) and os.fspath(value)):
        raise TypeError(
            f"`{name}` must be the path of a directory, or None for none. Received: {name}={value!r}. "
            "Give a string or a pathlib.Path; the directory is made if it is missing."
        )


def require_file(name: str, value: Any) -> None:
    """Refuse what cannot name a file to be written; None stands for no file.

    Raises:
        TypeError: With what came and the remedy.
        ValueError: There is a directory at this path.
    """
    if value is not None and not (isinstance(value, str | os.PathLike) and os.fspath(value)):
        raise TypeError(
            f"`{name}` must be the path of a file, or None for none. Received: {name}={value!r}. "
            "Give a string or a pathlib.Path; the file is made if it is missing."
        )
    if value is not None and os.path.isdir(value):
        raise ValueError(f"`{name}` must be the path of a file. Received: {name}={value!r}, which is a directory.")


def require_range(lowest: Any, highest: Any) -> None:
    """Refuse bounds that are not positive, finite and in order."""
    numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in (lowest, highest))
    if not numbers or not 0 < lowest < highest < math.inf:
        raise ValueError(
            "The space must run from a positive `lowest` to a larger, finite `highest`. "
            f"Received: lowest={lowest!r}, highest={highest!r}."
        )


def require_whole_range(lowest: Any, highest: Any) -> None:
    """Refuse bounds that are not whole, positive and in order."""
    whole = all(isinstance(one, int) and not isinstance(one, bool) for one in (lowest, highest))
    if not whole or not 1 <= lowest <= highest:
        raise ValueError(
            "The space must run from a whole `lowest`, at least 1, to a `highest` that is no smaller. "
            f"Received: lowest={lowest!r}, highest={highest!r}."
        )


def require_choices(name: str, given: Sequence[Any], known: Sequence[Any]) -> None:
    """Refuse an empty choice, and what is not known."""
    unknown = [one for one in given if one not in known]
    if isinstance(given, str) or not len(given) or unknown:
        raise ValueError(f"`{name}` must be some of: {', '.join(map(str, known))}. Received: {name}={given!r}.")
