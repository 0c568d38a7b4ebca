"""What an error says, without the frames, nodes and colours that TensorFlow and Keras wrap it in."""

from __future__ import annotations

import re

LONGEST = 600  # characters that are kept
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_WRAPPING = re.compile(
    r"^\s*$|^Graph execution error:|^Detected at node|^\s+File \"|^ {4,}|^\s*\[\[\{\{node|^Traceback \(most recent"
    r"|^Stack trace for op definition|^\t|^\d+ root error\(s\)|^\s*\(\d+\) "
)
_ARGUMENTS = re.compile(r"\n\s*Arguments received by .*", re.DOTALL)
_NAMED = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|Warning|Interrupt|Iteration)\b")
_PLACE = re.compile(r"\{\{(?:function_)?node [^}]*\}\}\s*|\s*\[Op:[^\]]*\](?:\s*name:\s*\S*)?")


def essence(error: BaseException) -> str:
    """Return what an error says in one line, the frames and graph nodes around it left out.

    Example:
        >>> essence(ValueError("Graph execution error:\\n\\nReceived a label value of 7\\n\\t [[{{node loss}}]]"))
        'Received a label value of 7'
    """
    text = _ARGUMENTS.sub("", _COLOUR.sub("", str(error)))
    kept = [line for line in text.splitlines() if not _WRAPPING.match(line)]
    if "Traceback (most recent call last)" in text:  # Python within TensorFlow: the last line names the error itself
        kept = [line for line in kept if _NAMED.match(line)][-1:] or kept
    said = " ".join(_PLACE.sub(" ", " ".join(kept)).split()) or " ".join(text.split())
    return said[:LONGEST]


def named(error: BaseException) -> str:
    """Return the class of an error and what it says: "RuntimeError: the disk is gone"."""
    said = essence(error)
    if _NAMED.match(said):
        return said
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
