"""Numbers with their nouns, in the sentences of findings and reports."""

from __future__ import annotations

from collections.abc import Sequence

MAX_NAMES = 3  # that a sentence lists


def counted(number: int, noun: str, *, plural: str | None = None) -> str:
    """Return a number and its noun, in the singular for one.

    Args:
        number: How many.
        noun: In the singular.
        plural: Where it does not end in "s".

    Example:
        >>> counted(1, "layer"), counted(2, "layer"), counted(1200, "step"), counted(2, "batch", plural="batches")
        ('1 layer', '2 layers', '1,200 steps', '2 batches')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def named(names: Sequence[str]) -> str:
    """Return the first names of a list in quotes, and how many more there are.

    Example:
        >>> named(["dense", "dense_1", "dense_2", "dense_3"])
        "'dense', 'dense_1', 'dense_2' and 1 more"
    """
    return listed([repr(name) for name in names])


def listed(words: Sequence[str]) -> str:
    """Return the first words of a list, and how many more there are.

    Example:
        >>> listed(["dropout of 0.5", "noise of 1"])
        'dropout of 0.5, noise of 1'
    """
    more = f" and {len(words) - MAX_NAMES:,} more" if len(words) > MAX_NAMES else ""
    return ", ".join(words[:MAX_NAMES]) + more
