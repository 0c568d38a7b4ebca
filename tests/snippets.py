"""Run what a page of Markdown shows: its Python blocks in one namespace, its console lines by the command itself."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

from gradrecipes.cli.main import main

UNHEALTHY_OR_DONE = (0, 1)


def blocks(page: str) -> list[tuple[str, str]]:
    """Return kind and text of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def run(page: str, name: str, folder: Path, names: dict | None = None) -> tuple[list[int], dict]:
    """Run all blocks, top to bottom, in one namespace; return which were run, and the namespace.

    Args:
        page: Markdown.
        name: File name for tracebacks, which then name the line of the page.
        folder: The working directory while it runs is the caller's business; console lines act in it.
        names: What the page may take for granted.
    """
    assert Path.cwd() == folder, "a page runs in a folder of its own"
    module = name.replace(".", "_").replace("/", "_")
    names, done = {"__name__": module, **(names or {})}, []
    try:
        for number, (kind, text) in enumerate(blocks(page)):
            if kind == "python":
                lines_above = page[: page.index(text)].count("\n")
                exec(compile("\n" * lines_above + text, name, "exec"), names)
                done.append(number)
            elif kind == "console":
                for program, *arguments in commands(text):
                    assert program == "gradrecipes", program
                    assert main(arguments) in UNHEALTHY_OR_DONE, arguments
                done.append(number)
    finally:
        sys.modules.pop(module, None)
    return done, names


def commands(text: str) -> list[list[str]]:
    """Return the words of every line that begins with a prompt."""
    return [shlex.split(line.removeprefix("$ ")) for line in text.splitlines() if line.startswith("$ ")]
