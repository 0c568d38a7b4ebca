"""Score the diagnosis on the corpus: what it finds, whether it names the cause, and whether it leaves sound nets alone.

Every failing program, its repaired twin and every sound program is diagnosed before its training. Beside it stand four
rules in common use, judged on the same hundred steps: TerminateOnNaN; the gradient of the first layer over that of the
last above 70, or below 1/70; mean |g| above 1 or below 1e-7; a loss that does not fall. They name no cause.

    python benchmarks/diagnosis.py                     all five sets, one after the other
    python benchmarks/diagnosis.py --set tuning_half   one of them; --set may be given more than once

What was missed is printed program by program; but of the set that is set aside only the totals are printed, so that
nobody tunes a rule to it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import keras
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

import gradrecipes as gr
from gradrecipes.core.findings.finding import Kind
from tests.corpus.case import BLIND, SETS, Case
from tests.corpus.verify import surroundings

SPELLED = {"missing_warmup": "missing_warm_up"}  # causes that a set spells otherwise than the rule
RATIO = 70.0  # first over last layer's gradient norm
LARGEST_MEAN, SMALLEST_MEAN = 1.0, 1e-7  # mean |g| of a layer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--set", choices=SETS, action="append", help="default: all")
    parser.add_argument("--out", type=Path, default=Path("out/diagnosis.json"))
    arguments = parser.parse_args()
    console, results = Console(width=120), {}
    for name in arguments.set or SETS:
        results[name] = score(name)
        console.print(totals(name, results[name]))
        if name not in BLIND:
            console.print(breakdown(results[name]))
            for row in results[name]:
                if not row["right"]:
                    expected = row["cause"] or "nothing"
                    console.print(f"  {row['name']}: expected {expected}, found {row['found'][:3]} {row['error']}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    shown = {name: rows for name, rows in results.items() if name not in BLIND}
    arguments.out.write_text(json.dumps(shown, indent=1))


def programs(name: str) -> Iterator[tuple[Case, str]]:
    """Yield (case, "failing" | "twin" | "sound")."""
    for case in importlib.import_module(f"tests.corpus.{name}").CASES:
        yield case, "sound" if case.cause is None else "failing"
        if case.repaired is not None:
            yield case, "twin"


def score(name: str) -> list[dict[str, Any]]:
    """Return a row for every program of a set."""
    return [judge(case, kind) for case, kind in track(list(programs(name)), description=name)]


def judge(case: Case, kind: str) -> dict[str, Any]:
    """Diagnose one program."""
    keras.backend.clear_session()
    named = (case.cause, *case.accepted) if kind == "failing" else ()
    expected = {SPELLED.get(code or "", code) for code in named}
    row: dict[str, Any] = {"name": case.name, "kind": kind, "cause": case.cause if expected else None, "error": ""}
    with surroundings(case.needs):
        program = (case.repaired if kind == "twin" else case.build)()
        began = time.perf_counter()
        try:
            diagnosis = gr.diagnose(program.model, program.x, program.y, batch_size=program.batch_size)
        except Exception as error:  # counts as a miss
            return row | {"error": repr(error)[:200], "found": [], "right": False, "verdict": "raised", "seconds": 0.0}
        row["seconds"] = time.perf_counter() - began
    causes = [finding.code for finding in diagnosis.findings if finding.kind is Kind.CAUSE]
    found = [finding.code for finding in diagnosis.findings]
    row |= {"found": found, "causes": causes, "verdict": diagnosis.verdict, "steps": len(diagnosis.trace)}
    row["right"] = bool(found and found[0] in expected) if expected else not found
    row["raw"] = bool(found and found[0] in named)
    row["among_three"] = bool(set(causes[:3]) & set(expected))
    row["baselines"] = baselines(diagnosis.trace)
    return row


def baselines(trace: gr.Trace) -> dict[str, bool]:
    """Return which of the rules in common use would raise an alarm on these steps."""
    if not len(trace):
        return dict.fromkeys(("TerminateOnNaN", "first : last > 70", "mean |g|", "loss not falling"), False)
    loss, norms = trace.loss.astype(float), trace.layer_gradient_norm.astype(float)
    norms = np.nan_to_num(norms[:, np.isfinite(norms).any(axis=0)], posinf=np.inf)
    sizes = {layer.name: layer.parameters or 1 for layer in trace.description.layers}
    counts = np.array([sizes.get(name, 1) for name in trace.layers], dtype=float)
    means = np.nan_to_num(trace.layer_gradient_norm.astype(float) / np.sqrt(np.maximum(counts, 1.0)), posinf=np.inf)
    with np.errstate(all="ignore"):
        ratio = norms[:, 0] / norms[:, -1] if norms.shape[1] > 1 else np.ones(len(norms))
    dead = np.min(np.max(means[:, counts > 1], axis=0), initial=np.inf) < SMALLEST_MEAN
    quarter = max(1, len(loss) // 4)
    with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
        falling = np.nanmean(loss[-quarter:]) < np.nanmean(loss[:quarter])
    return {
        "TerminateOnNaN": bool(not np.isfinite(loss).all()),
        "first : last > 70": bool((np.nanmax(ratio) > RATIO) or (np.nanmin(ratio) < 1.0 / RATIO)),
        "mean |g|": bool(means.max() > LARGEST_MEAN or dead),
        "loss not falling": bool(not falling),
    }


def totals(name: str, rows: list[dict[str, Any]]) -> Table:
    """Return the table of a set: its failing programs, its healthy ones, and the repaired twins of the failing."""
    parts = [[row for row in rows if row["kind"] == kind] for kind in ("failing", "sound", "twin")]
    table = Table(title=f"{name}: {len(parts[0])} failing programs, {len(parts[1])} healthy, {len(parts[2])} twins")
    for column in ("", "failing", "healthy", "twins"):
        table.add_column(column, justify="left" if not column else "right")
    for verdict in ("unhealthy", "undecided", "healthy", "raised"):
        label = "raised an error" if verdict == "raised" else f"called {verdict}"
        table.add_row(label, *(_share([row["verdict"] == verdict for row in part]) for part in parts))
    table.add_row("any finding, notices included", *(_share([bool(row["found"]) for row in part]) for part in parts))
    table.add_row("first finding right", _share([row["right"] for row in parts[0]]), "-", "-")
    among = [row.get("among_three", False) for row in parts[0]]
    table.add_row("cause among first three", _share(among), "-", "-", end_section=True)
    for rule in ("TerminateOnNaN", "first : last > 70", "mean |g|", "loss not falling"):
        alarms = [[row["baselines"][rule] for row in part if "baselines" in row] for part in parts]
        table.add_row(f"alarms of {rule}", *(_share(part) for part in alarms))
    seconds = np.array([row["seconds"] for row in rows])
    steps = [row["steps"] for row in rows if "steps" in row]
    table.caption = (
        f"Seconds a program: median {np.median(seconds):.1f}, largest {seconds.max():.1f}. "
        f"Steps of the trial: median {np.median(steps):.0f}, most {max(steps)}."
    )
    return table


def breakdown(rows: list[dict[str, Any]]) -> str:
    """Return by which rules the false alarms were raised, and which causes were missed; no program is named."""
    sick = [row for row in rows if not row["cause"] and row["found"]]
    alarms = Counter(row["found"][0] for row in sick)
    missed = Counter(row["cause"] for row in rows if row["cause"] and not row["right"])
    listed = [", ".join(f"{code} {count}" for code, count in part.most_common()) or "none" for part in (alarms, missed)]
    return f"False alarms by rule: {listed[0]}. Causes not found first: {listed[1]}."


def _share(values: list[bool]) -> str:
    return f"{sum(values)} of {len(values)} ({sum(values) / max(1, len(values)):.0%})"


if __name__ == "__main__":
    main()
