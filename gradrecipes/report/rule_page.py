"""The page of a rule, read from the docstring of the module in which the rule stands, so that nothing is said twice."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass

from gradrecipes.diagnosis.registry import rules


@dataclass(frozen=True)
class RulePage:
    """What a rule says of itself.

    Args:
        code: Its code.
        kind: `"cause"` or `"symptom"`.
        line: What it sees, in one line.
        sections: (heading, Markdown) of each section: What it does, Why it is bad, Example, Remedy, References.
    """

    code: str
    kind: str
    line: str
    sections: tuple[tuple[str, str], ...]

    def markdown(self) -> str:
        """Return the page as Markdown."""
        parts = [f"## {heading}\n\n{text}\n" for heading, text in self.sections]
        return "\n".join([f"# {self.code}\n\n**{self.kind.capitalize()}:** {self.line}\n", *parts])


def rule_page(code: str) -> RulePage:
    """Return the page of a rule.

    Raises:
        ValueError: There is no such code.
    """
    table = rules()
    if code not in table:
        raise ValueError(f"There is no rule {code!r}. There are: {', '.join(table)}.")
    entry = table[code]
    title, _, body = (sys.modules[entry.find.__module__].__doc__ or "").partition("\n")
    _, *parts = re.split(r"^## +(.+)$", body, flags=re.MULTILINE)
    sections = tuple(zip(parts[::2], (text.strip("\n") for text in parts[1::2]), strict=True))
    return RulePage(code, entry.kind.value, title.removeprefix(f"{code}:").strip(), sections)
