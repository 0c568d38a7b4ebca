"""The table of rules: each enters itself with a decorator, and everything that lists rules reads this table."""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass

from gradrecipes.core.findings import Finding, Kind
from gradrecipes.core.trace import Trace

Find = Callable[[Trace], Finding | None]

# What many causes bring about: the symptoms of a run that fails, and steps that only look too long.
FAILED_RUN = ("exploding_gradient", "nonfinite_loss", "diverging_loss", "oscillating_loss", "stalled_loss")
LONG_STEPS = ("missing_warm_up", "learning_rate_too_high", "batch_too_small")


@dataclass(frozen=True)
class Rule:
    """Describe a rule.

    Args:
        code: What it finds. Codes are never renamed.
        kind: Whether that is a cause or a symptom.
        title: What it finds, in one line for a list.
        order: Position in the order in which trouble arises: data before weights, weights before the learning rate.
            It decides between findings that are equally certain.
        brings_about: Codes of what it explains. A cause that a certain finding explains loses confidence; a symptom
            is shown below the causes that explain it.
        needs_cause: Whether it is reported only if a cause explains it, or if it is certain.
        find: Returns a finding, or None.
        short: What it finds, in a few words for the path from a cause to a symptom; empty for symptoms.
    """

    code: str
    kind: Kind
    title: str
    order: int
    brings_about: tuple[str, ...]
    needs_cause: bool
    find: Find
    short: str = ""


_RULES: dict[str, Rule] = {}


def rule(
    *,
    code: str,
    kind: Kind,
    title: str,
    order: int,
    short: str = "",
    brings_about: tuple[str, ...] = (),
    needs_cause: bool = False,
) -> Callable[[Find], Find]:
    """Enter a function into the table of rules. For the arguments see `Rule`.

    Raises:
        ValueError: The code is taken.
    """

    def enter(find: Find) -> Find:
        if code in _RULES and _RULES[code].find.__module__ != find.__module__:
            raise ValueError(
                f"Two rules have the code {code!r}, in {_RULES[code].find.__module__} and {find.__module__}."
            )
        _RULES[code] = Rule(code, kind, title, order, brings_about, needs_cause, find, short)
        return find

    return enter


def rules() -> dict[str, Rule]:
    """Return all rules by code, in the order in which trouble arises.

    Example:
        >>> rules()["nonfinite_data"].kind.value
        'cause'
    """
    from gradrecipes.diagnosis import rules as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return dict(sorted(_RULES.items(), key=lambda item: (item[1].order, item[0])))


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
