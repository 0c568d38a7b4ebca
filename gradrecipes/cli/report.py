"""`gradrecipes report`: a saved trace becomes a diagnosis in the terminal, an HTML page, or JSON."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gradrecipes.cli.terminal import UsageError

if TYPE_CHECKING:
    from gradrecipes.core.trace import Trace
    from gradrecipes.report.diagnosis import Diagnosis


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `gradrecipes report` takes."""
    parser.add_argument("trace", type=Path, metavar="TRACE", help="a file that Trace.save wrote")
    parser.add_argument(
        "--html",
        type=Path,
        metavar="PATH",
        help="where to write the page (default: beside the trace, ending in .html; with --json: nowhere)",
    )
    parser.add_argument("--full", action="store_true", help="print every finding with its evidence and remedies")
    parser.add_argument("--json", action="store_true", help="print the diagnosis as JSON and nothing else")


def run(arguments: argparse.Namespace) -> int:
    """Diagnose the trace, print it, write the page; return 0 when the training is healthy, else 1."""
    trace = load_trace(arguments.trace)
    html = _html_path(arguments)
    from gradrecipes.doctor import diagnose

    diagnosis = diagnose(trace)
    if arguments.json:
        print(diagnosis.to_json())
    else:
        print_diagnosis(diagnosis, full=arguments.full)
    if html is not None:
        write_page(diagnosis, html, needed=arguments.html is not None)
    return 1 if diagnosis.verdict == "unhealthy" else 0


def load_trace(path: Path) -> Trace:
    """Return the trace in a file.

    Raises:
        UsageError: There is none, or it cannot be read.
    """
    from gradrecipes.core.trace import Trace

    try:
        return Trace.load(path)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(str(error)) from error


def print_diagnosis(diagnosis: Diagnosis, *, full: bool) -> None:
    """Print a diagnosis for people: one screen, in colour where the terminal has it, or everything."""
    if full:
        print(diagnosis.full())
        return
    try:
        from rich.console import Console
    except ImportError:
        print(diagnosis)
        return
    Console(file=sys.stdout, highlight=False).print(diagnosis)


def write_page(diagnosis: Diagnosis, path: Path, *, needed: bool) -> None:
    """Write the HTML page and say on stderr where it is.

    Args:
        diagnosis: What to write.
        path: Where to.
        needed: Whether the user asked for it; if not, a missing library is worth a hint only.

    Raises:
        UsageError: The page cannot be written.
    """
    try:
        diagnosis.save_html(path)
    except ImportError as error:
        if needed:
            raise UsageError(str(error)) from error
        print(f"No HTML page was written. {error}", file=sys.stderr)
    except OSError as error:
        raise UsageError(
            f"The HTML page cannot be written to {str(path)!r}: {error}. Choose another place with --html PATH."
        ) from error
    else:
        print(f"HTML page: {path}", file=sys.stderr)


def _html_path(arguments: argparse.Namespace) -> Path | None:
    if arguments.html is None and arguments.json:
        return None
    path = arguments.html or arguments.trace.with_suffix(".html")
    if path.resolve() == arguments.trace.resolve():
        raise UsageError(
            f"The HTML page would overwrite the trace {str(path)!r}. Choose another place with --html PATH."
        )
    return path
