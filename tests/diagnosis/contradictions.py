"""What the words of one diagnosis must not do: contradict each other, the table of variations, or what is there."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator

from gradrecipes.core.findings import Finding, Severity
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.data_reading import DataReading
from gradrecipes.core.trace.trial_reading import variation_of
from gradrecipes.diagnosis.outcome import verdict
from gradrecipes.report.facts import trial_rows

AS_IT_IS = re.compile(r"As it is, the loss (.+?) in a short trial; (.+?), (it .+?)\.(?: |$)")
RATE = re.compile(r"(Raise|Lower) the learning rate(?: from (\S+?))?(?: to (\S+?))?(?:,|$)")
NUMBER = re.compile(r"-?\d[\d.]*(?:e[+-]?\d+)?(?<!\.)")
THREE_DIGITS, TWO_DIGITS = 5e-3, 5e-2  # relative error of a number that is rounded to so many digits
CLIPS = ("clipnorm", "clipvalue", "global_clipnorm")
SAID_TO_BE_RIGHT = "initial weights have the right size"
WEIGHTS_BLAMED = {"exploding_initialization", "vanishing_initialization"}
UNGRAMMATICAL = (
    re.compile(r"\b(?:from|of) (\S*\d\S*) to \1(?=[ .;,])"),
    re.compile(r"\b[Uu]se (\w+) instead of \1\b"),
    re.compile(r"(?<![\w-])(?<![-*/] )(?:nan|inf)(?!\w| [-*/])|(?<=[\w,] )None(?!\w)"),  # `inf - inf` is arithmetic
    re.compile(r"(?<!of )\b1 (?:steps|layers|samples|batches)\b"),
    re.compile(r"  |(?<!\d)\.\.(?!\.)| ,| \."),
)


def contradictions(findings: tuple[Finding, ...], trace: Trace) -> list[str]:
    """Return what is wrong with the words of a diagnosis, a sentence each; an empty list where nothing is.

    Args:
        findings: In the order in which they are read.
        trace: The record they rest on.
    """
    return [
        *_of_words(findings),
        *_of_trials(findings, trace),
        *_of_rates(findings, trace),
        *_of_weights(findings),
        *_of_data(findings, trace),
        *_of_prescriptions(findings, trace),
    ]


def _texts(finding: Finding) -> Iterator[str]:
    yield finding.title
    yield finding.explanation
    yield from (fact.statement for fact in finding.evidence)
    for advice in finding.prescriptions:
        yield from (advice.title, advice.reason, advice.risk)


def _of_words(findings: tuple[Finding, ...]) -> Iterator[str]:
    for finding in findings:
        for text in _texts(finding):
            for pattern in UNGRAMMATICAL:
                if (hit := pattern.search(text)) is not None:
                    yield f"{finding.code} says {hit[0]!r}: {text}"


def _of_trials(findings: tuple[Finding, ...], trace: Trace) -> Iterator[str]:
    """Compare what findings say of a variation with one another and with the table."""
    said: dict[str, str] = {}
    rows = {row.name: row for row in trial_rows(trace)}
    trial = trace.probes.trial
    words = {} if trial is None else {variation_of(name).words: variation_of(name).label for name in trial.variations}
    for finding in findings:
        for fact in finding.evidence:
            for run, change, then in AS_IT_IS.findall(fact.statement):
                if said.setdefault("as it is", run) != run:
                    yield f"The run as it is {run!r}, and elsewhere {said['as it is']!r}."
                if said.setdefault(change, then) != then:
                    yield f"{change}: {then!r}, and elsewhere {said[change]!r}."
                row = rows.get(words.get(change, ""))
                if row is None:
                    yield f"{finding.code} quotes a variation that the table lacks: {change}."
                elif "breaks" not in then and not _ends_alike(then, row.end):
                    yield f"{finding.code} says {then!r}, where the table has {row.start} to {row.end}."


def _ends_alike(words: str, end: str) -> bool:
    """Return whether the last number in some words is this one, to the digits in which findings quote it."""
    numbers = NUMBER.findall(words.replace(",", ""))
    digits = TWO_DIGITS if numbers and "e" in numbers[-1] else THREE_DIGITS
    try:
        return bool(numbers) and math.isclose(float(numbers[-1]), float(end.replace(",", "")), rel_tol=digits)
    except ValueError:  # no number in the table
        return end in words


def _of_rates(findings: tuple[Finding, ...], trace: Trace) -> Iterator[str]:
    """Compare the learning rates that are advised with one another and with the one that is there."""
    ways: dict[str, str] = {}
    first: dict[str, str] = {}
    for finding in findings:
        if finding.severity is Severity.NOTICE:
            continue
        for advice in finding.prescriptions:
            hit = RATE.match(advice.title)
            if hit is None:
                continue
            way, before, after = hit.groups()
            ways.setdefault(way, finding.code)
            rate = trace.description.learning_rate
            if before is not None and rate is not None and abs(float(before) - rate) > 0.06 * rate:
                yield f"{finding.code} takes the rate to be {before}; it is {rate:g}."
            if after is not None and first.setdefault(way, after) != after:
                yield f"{finding.code} wants a rate of {after}, another finding {first[way]}."
    if len(ways) > 1:
        yield f"{ways['Raise']} raises the learning rate, {ways['Lower']} lowers it."


def _of_weights(findings: tuple[Finding, ...]) -> Iterator[str]:
    blamed = WEIGHTS_BLAMED.intersection(finding.code for finding in findings)
    for finding in findings:
        if blamed and any(SAID_TO_BE_RIGHT in text for text in _texts(finding)):
            yield f"{finding.code} says that the {SAID_TO_BE_RIGHT}; {', '.join(blamed)} says the opposite."


def _of_data(findings: tuple[Finding, ...], trace: Trace) -> Iterator[str]:
    """Look for advice to check data that were read whole and are finite."""
    data = trace.probes.data
    finite = data is not None and data.complete and not any(one.nonfinite for one in data.arrays("inputs", "targets"))
    if not finite or not (data or DataReading()).inputs:
        return
    for finding in findings:
        for advice in finding.prescriptions:
            if "NaN or Inf" in advice.title or "isfinite" in advice.code:
                yield f"{finding.code} advises {advice.title!r}, though all the data are finite."


def _of_prescriptions(findings: tuple[Finding, ...], trace: Trace) -> Iterator[str]:
    """Look for advice that does not compile, is of another kind of layer, or is what is there already."""
    about = trace.description
    kinds = {*about.kinds, *about.normalizations, *(layer.kind for layer in about.layers)}
    optimizer = about.optimizer
    for finding in findings:
        titles = [advice.title for advice in finding.prescriptions]
        if len(set(titles)) < len(titles):
            yield f"{finding.code} advises the same thing twice: {titles}."
        for advice in finding.prescriptions:
            try:
                ast.parse(advice.code)
            except SyntaxError as error:
                yield f"{finding.code}: {advice.title!r} does not compile: {error}."
            known = bool(about.kinds)
            for kind in re.findall(r"keras\.layers\.(Dense|Conv\dD|LSTM|GRU|SimpleRNN|Embedding)\(", advice.code):
                other = f"{kind} or" in advice.title or f"{kind} instead of" in advice.title
                if known and kind not in kinds and not other and not _replaces_the_head(advice.code):
                    yield f"{finding.code}: {advice.title!r} is made of {kind}; the net has {sorted(kinds)}."
            made = re.search(r"keras\.optimizers\.(\w+)\((?:learning_rate=)?([\d.e-]+)\)", advice.code)
            # Of a fresh optimizer the state is new; loss weights and freed layers come with the one that is there.
            changed = any(word in advice.title for word in ("fresh", "weights", "frozen", "regularization"))
            clipped = optimizer is not None and any(optimizer.settings.get(name) for name in CLIPS)
            there = None if optimizer is None or changed or clipped else (optimizer.name, optimizer.learning_rate)
            if made and (made[1], float(made[2])) == there:
                yield f"{finding.code}: {advice.title!r} is the optimizer that is there: {made[0]}."
            if optimizer and optimizer.settings.get("global_clipnorm") and "lip the gradient" in advice.title:
                yield f"{finding.code}: {advice.title!r}, and they are clipped already."
            instead = known and "instead of BatchNormalization" in advice.title
            if instead and "BatchNormalization" not in kinds:
                yield f"{finding.code}: {advice.title!r}; there is none."
            if optimizer and optimizer.schedule and "warm" in optimizer.schedule.lower() and "arm" in advice.title[:5]:
                yield f"{finding.code}: {advice.title!r}; the rate is warmed up."
    if verdict(trace).state == "learning" and any("does not fall" in finding.title for finding in findings):
        yield "The loss is said to stand still, and the run is learning."


def _replaces_the_head(code: str) -> bool:
    return code.count("keras.layers.") == 1 and "last = " in code
