"""Write the evidence page of the documentation and the README's table from the recorded figures.

    python -m benchmarks.evidence

`make bench` calls it too. Nothing in either is written by hand; a test compares both with benchmarks/results/.
"""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks import record
from benchmarks.record import Record, expected_words, measured_words

PAGE = record.ROOT / "docs" / "evidence" / "index.md"
README = record.ROOT / "README.md"
BEGIN, END = "<!-- evidence: written by python -m benchmarks.evidence -->", "<!-- end of evidence -->"
MARKS = {True: "yes", False: "**no**", None: "-"}


def records(results: Path = record.RESULTS) -> list[Record]:
    """Return what is recorded, in the order of names."""
    return [record.load(path) for path in sorted(results.glob("*.json"))]


def missed(recorded: list[Record]) -> list[str]:
    """Return a line for each figure that is not as expected."""
    return [
        f"- {one.title}: {figure.claim}: {measured_words(figure)}, expected {expected_words(figure)}."
        for one in recorded
        for figure in one.figures
        if figure.reproduced is False
    ]


def page(recorded: list[Record], unrecorded: list[str]) -> str:
    """Return the page."""
    lines = missed(recorded)
    parts = [
        "# Evidence",
        "Each figure was measured by the command beside it, which writes it into `benchmarks/results/` with its "
        "interval and the versions; this page is made of those files. Means come with Student's interval and shares "
        "with Wilson's, both at 95%; ratios of times with two standard errors. A published figure counts as reproduced "
        "if it lies in the interval; a target counts as reached if the number itself does.",
        "## What did not come out as expected",
        "\n".join(lines) if lines else "Nothing.",
        "## What is not recorded yet",
        "\n".join(f"- `make bench ONLY={name}`" for name in unrecorded) if unrecorded else "Nothing.",
    ]
    return "\n\n".join([*parts, *map(section, recorded)]) + "\n"


def section(one: Record) -> str:
    """Return the part of the page on one benchmark."""
    rows = [
        f"| {figure.claim} | {expected_words(figure)} | {measured_words(figure)} | {figure.n} | "
        f"{MARKS[figure.reproduced]} |"
        for figure in one.figures
    ]
    about = ", ".join(f"{name} {version}" for name, version in one.about.items())
    parts = [
        f"## {one.title}",
        f"Source: {one.source}" if one.source else "",
        f"Setting: {one.setting}" if one.setting else "",
        "\n".join(["| | expected | measured | n | as expected |", "|---|---|---|---|---|", *rows]),
        "\n".join(f"- {finding}" for finding in one.findings),
        f"![{one.title}]({one.plot})" if one.plot else "",
        f"Measured by `{one.command}`, with {about}.",
    ]
    return "\n\n".join(part for part in parts if part)


def table(recorded: list[Record]) -> str:
    """Return the table of the README."""
    rows = ["| result | figures as expected | not as expected | measured by |", "|---|---|---|---|"]
    for one in recorded:
        judged = [figure for figure in one.figures if figure.reproduced is not None]
        misses = [figure.claim for figure in judged if not figure.reproduced]
        count = f"{len(judged) - len(misses)} of {len(judged)}" if judged else "none expected"
        rows.append(f"| {one.title} | {count} | {'; '.join(misses) or '-'} | `{one.command}` |")
    return "\n".join(rows)


def with_table(readme: str, rows: str) -> str:
    """Return the README with another table between its marks."""
    found = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    if not found.search(readme):
        raise ValueError(f"README.md has no lines {BEGIN!r} and {END!r}, between which the table goes.")
    return found.sub(lambda _: f"{BEGIN}\n{rows}\n{END}", readme, count=1)


def write(names: list[str]) -> None:
    """Write both; `names` are all benchmarks there are."""
    recorded = records()
    known = {one.name for one in recorded}
    PAGE.write_text(page(recorded, [name for name in names if name not in known]), encoding="utf-8")
    README.write_text(with_table(README.read_text(encoding="utf-8"), table(recorded)), encoding="utf-8")


if __name__ == "__main__":
    from benchmarks.run import BENCHMARKS

    write(list(BENCHMARKS))
