"""Break lines of Python that are too long for a screen, so that they can still be pasted."""

from __future__ import annotations

import ast
import io
import textwrap
import tokenize

INDENT = 4  # columns by which the rest of a broken line is indented further


def narrow(code: str, width: int) -> list[str]:
    """Return the lines of code, each at most `width` columns where Python's syntax allows it.

    A line is broken after a comma or an opening bracket; a comment behind code moves to the line above it. Several
    blank lines become one. The code means the same: if that cannot be shown, it is returned as it is.

    Args:
        code: Python source.
        width: Columns.

    Example:
        >>> print("\\n".join(narrow("f(alpha, beta, gamma)  # greek", 14)))
        # greek
        f(alpha, beta,
            gamma)
    """
    lines = code.strip("\n").split("\n")
    try:
        breaks, comments = _positions(code.strip("\n"))
        narrowed = [
            part for row, line in enumerate(lines, 1) for part in _line(line, breaks[row], comments[row], width)
        ]
        kept = [line for place, line in enumerate(narrowed) if line or (place and narrowed[place - 1])]
        same = ast.dump(ast.parse("\n".join(kept))) == ast.dump(ast.parse(code))
    except (SyntaxError, tokenize.TokenError):
        same = False
    return kept if same else lines


def _positions(code: str) -> tuple[list[list[int]], list[int | None]]:
    """Return for each row, counted from 1, the columns where it may be broken, and where its comment begins."""
    rows = code.count("\n") + 2
    breaks: list[list[int]] = [[] for _ in range(rows)]
    comments: list[int | None] = [None] * rows
    depth = in_string = 0
    for token in tokenize.generate_tokens(io.StringIO(code + "\n").readline):
        name = tokenize.tok_name[token.type]
        in_string += name.endswith("STRING_START")  # of an f-string, from Python 3.12 on
        in_string -= name.endswith("STRING_END")
        depth += (token.string in ("(", "[", "{")) - (token.string in (")", "]", "}")) if name == "OP" else 0
        row, column = token.end
        if name == "OP" and depth and not in_string and token.string in (",", "(", "[", "{"):
            breaks[row].append(column)
        elif name == "COMMENT":
            comments[row] = token.start[1]
    return breaks, comments


def _line(line: str, breaks: list[int], comment: int | None, width: int) -> list[str]:
    if len(line) <= width:
        return [line]
    indent = " " * (len(line) - len(line.lstrip()))
    if comment is not None:
        words = line[comment:].lstrip("# ")
        said = textwrap.wrap(words, width, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        return said + (_line(line[:comment].rstrip(), breaks, None, width) if line[:comment].strip() else [])
    parts, start, prefix = [], 0, ""
    while len(prefix) + len(line[start:]) > width:
        fitting = [column for column in breaks if start < column < len(line) and len(prefix) + column - start <= width]
        later = [column for column in breaks if start < column < len(line)]
        if not later:
            break
        column = max(fitting) if fitting else later[0]
        parts.append(prefix + line[start:column].rstrip())
        start, prefix = column + len(line[column:]) - len(line[column:].lstrip()), indent + " " * INDENT
    return [*parts, prefix + line[start:]]
