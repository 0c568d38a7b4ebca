"""Score the diagnosis on the corpus: what it finds, whether it names the cause, and whether it leaves sound nets alone.

Every failing program, its repaired twin and every sound program is diagnosed before its training. Beside it stand four
rules in common use, judged on the same hundred steps: TerminateOnNaN; the gradient of the first layer over that of the
last above 70, or below 1/70; mean |g| above 1 or below 1e-7; a loss that does not fall. They name no cause.

    python benchmarks/diagnosis.py                     all sets, one after the other
    python benchmarks/diagnosis.py --set tuning_half   one of them; --set may be given more than once
    python benchmarks/diagnosis.py --set tuning_half --traces out/traces     keep the records, and judge them again
    python benchmarks/diagnosis.py --set tuning_half --apply --every 3       apply what is advised first, and train

What was missed, and what contradicts itself in the words of a diagnosis, is printed program by program; but of a blind
set only the totals are printed, so that nobody tunes a rule to it.

With `--apply` the first prescription of the first cause is applied to each failing program, which is then trained as
its user would. It counts as mended if it reaches within 5% of the metric of the known fix. Prescriptions of the data
and of the optimizer are run as they are printed; those of layers are the edits of `gr.rescue` that they describe.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import keras
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

import gradrecipes as gr
from benchmarks.rescue import Bench, metric_of, reaches
from gradrecipes.compat.keras_private import compile_arguments
from gradrecipes.core.findings import Kind
from gradrecipes.rescue.changes import BY_CAUSE, setup_after
from gradrecipes.rescue.rebuild import rebuild
from tests.corpus.case import BLIND, SETS, Case, Program
from tests.corpus.verify import surroundings
from tests.diagnosis.contradictions import contradictions

SPELLED = {"missing_warmup": "missing_warm_up"}  # causes that a set spells otherwise than the rule
RATIO = 70.0  # first over last layer's gradient norm
NOT_AS_PRINTED = re.compile(r"last = |\bpart\b|from_logits|model\.fit\(")  # lines that ask for an edit of the model
# Which edits of the rescue do what the title of a prescription says.
CHANGES = (
    (re.compile(r"residual|skip connections"), ("residual",)),
    (re.compile(r"Normalization (together|before|layer|instead)|Use LayerNorm"), ("normalization",)),
    (re.compile(r"^Use relu"), ("activation_relu",)),
    (re.compile(r"^Use elu"), ("activation_elu",)),
    (re.compile(r"Normalization layer first|Rescale the pixels|standardize the arrays"), ("inputs",)),
    (re.compile(r"standardized targets"), ("targets",)),
    (re.compile(r"^Use (He|Glorot|Lecun|VarianceScaling)"), ("initializers",)),
    (re.compile(r"guard"), ("guard",)),
    (re.compile(r"[Ww]arm"), ("warm_up",)),
    (re.compile(r"float32"), ("float32",)),
)
LARGEST_MEAN, SMALLEST_MEAN = 1.0, 1e-7  # mean |g| of a layer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--set", choices=SETS, action="append", help="default: all")
    parser.add_argument("--every", type=int, default=1, help="take every so manieth program")
    parser.add_argument("--traces", type=Path, help="folder of records: written, or read where they are; no blind set")
    parser.add_argument("--apply", action="store_true", help="train with what is advised first; no blind set")
    parser.add_argument("--out", type=Path, default=Path("out/diagnosis.json"))
    arguments = parser.parse_args()
    console, results = Console(width=120), {}
    for name in arguments.set or SETS:
        folder = None if arguments.traces is None or name in BLIND else arguments.traces / name
        results[name] = score(name, every=arguments.every, folder=folder, apply=arguments.apply and name not in BLIND)
        console.print(totals(name, results[name]))
        if arguments.apply and name not in BLIND:
            console.print(mended(results[name]))
        if name not in BLIND:
            console.print(breakdown(results[name]))
            for row in results[name]:
                if not row["right"]:
                    expected = row["cause"] or "nothing"
                    console.print(f"  {row['name']}: expected {expected}, found {row['found'][:3]} {row['error']}")
                for words in row.get("contradictions", ()):
                    console.print(f"  {row['name']} contradicts itself: {words}", markup=False)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    shown = {name: rows for name, rows in results.items() if name not in BLIND}
    arguments.out.write_text(json.dumps(shown, indent=1))


def programs(name: str) -> Iterator[tuple[Case, str]]:
    """Yield (case, "failing" | "twin" | "sound")."""
    for case in importlib.import_module(f"tests.corpus.{name}").CASES:
        yield case, "sound" if case.cause is None else "failing"
        if case.repaired is not None:
            yield case, "twin"


def score(name: str, *, every: int = 1, folder: Path | None = None, apply: bool = False) -> list[dict[str, Any]]:
    """Return a row for every program of a set, or for every so manieth."""
    chosen = list(programs(name))[::every]
    rows = []
    for case, kind in track(chosen, description=name):
        file = None if folder is None else folder / f"{case.name}.{kind}.npz"
        rows.append(judge(case, kind, file=file))
        if apply and kind == "failing":
            rows[-1]["applied"] = apply_first(case)
    return rows


def judge(case: Case, kind: str, *, file: Path | None = None) -> dict[str, Any]:
    """Diagnose one program, or its record where there is one."""
    keras.backend.clear_session()
    named = (case.cause, *case.accepted) if kind == "failing" else ()
    expected = {SPELLED.get(code or "", code) for code in named}
    row: dict[str, Any] = {"name": case.name, "kind": kind, "cause": case.cause if expected else None, "error": ""}
    with surroundings(case.needs):
        began = time.perf_counter()
        try:
            diagnosis = _diagnosed(case, kind, file)
        except Exception as error:  # counts as a miss
            return row | {"error": repr(error)[:200], "found": [], "right": False, "verdict": "raised", "seconds": 0.0}
        row["seconds"] = time.perf_counter() - began
    causes = [finding.code for finding in diagnosis.findings if finding.kind is Kind.CAUSE]
    found = [finding.code for finding in diagnosis.findings]
    row |= {"found": found, "causes": causes, "verdict": diagnosis.verdict, "steps": len(diagnosis.trace)}
    row["right"] = bool(found and found[0] in expected) if expected else not found
    row["among_three"] = bool(set(causes[:3]) & set(expected))
    row["baselines"] = baselines(diagnosis.trace)
    row["contradictions"] = contradictions(diagnosis.findings, diagnosis.trace)
    return row


def _diagnosed(case: Case, kind: str, file: Path | None) -> gr.Diagnosis:
    if file is not None and file.exists():
        return gr.diagnose(gr.Trace.load(file))
    program = (case.repaired if kind == "twin" else case.build)()
    diagnosis = _of(program)
    if file is not None:
        diagnosis.trace.save(file)
    return diagnosis


def _of(program: Program) -> gr.Diagnosis:
    named = ("batch_size", "epochs", "validation_data")  # what the user's own call of fit has
    return gr.diagnose(program.model, program.x, program.y, **{name: getattr(program, name) for name in named})


def apply_first(case: Case) -> dict[str, Any]:
    """Train a program with the first prescription of its first cause, and say whether it reaches the known fix."""
    keras.backend.clear_session()
    with surroundings(case.needs):
        program = case.build()
        found = _of(program).findings
        first = next((one for one in found if one.kind is Kind.CAUSE and one.prescriptions), None)
        if first is None:
            return {"code": "none", "how": "", "reached": False}
        result: dict[str, Any] = {"code": first.code, "title": first.prescriptions[0].title}
        try:
            changed, arguments, how = applied(case.build(), first)
        except Exception as error:
            return result | {"how": repr(error)[:200], "reached": False}
        if how == "by hand":
            return result | {"how": how, "reached": False}
        own, known = metric_of(changed, None, arguments), metric_of(case.repaired(), None, {})
        return result | {"how": how, "own": own, "known": known, "reached": reaches(own, known)}


def applied(program: Program, finding: gr.Finding) -> tuple[Program, dict[str, Any], str]:
    """Return the program after the first prescription of a finding, more arguments of `fit`, and how it was applied.

    How is "as printed", the names of the changes of `gr.rescue`, or "by hand" where neither can do it.
    """
    advice = finding.prescriptions[0]
    names: dict[str, Any] = {"model": program.model, "x": program.x, "y": program.y}
    if "model.compile(" in advice.code and "metrics" not in advice.code and not NOT_AS_PRINTED.search(advice.code):
        before = dict(compile_arguments(program.model) or {})
        exec(advice.code, names)
        changed = compile_arguments(program.model) or {}
        kept = {name: before.get(name) for name in ("metrics", "weighted_metrics", "jit_compile")}
        weights = changed.get("loss_weights") or before.get("loss_weights")
        program.model.compile(changed["optimizer"], changed["loss"], loss_weights=weights, **kept)
        return program, {}, "as printed"
    if re.search(r"^[xy]\S* = [xy]\S*\[sound\]$", advice.code, re.MULTILINE):
        exec(advice.code, names)
        return replace(program, x=names["x"], y=names["y"]), {}, "as printed"
    bench = Bench(program.model, program)
    wanted = [name for name in BY_CAUSE.get(finding.code, ()) if name in bench.known]
    wanted = next((named for words, named in CHANGES if words.search(advice.title)), wanted[:1])
    changes = [bench.known[name] for name in wanted if name in bench.known]
    if not changes or len(changes) < len(wanted):
        return program, {}, "by hand"
    setup = setup_after(bench.base, tuple(changes))
    keras.utils.set_random_seed(0)
    model = rebuild(bench.original, bench.base, setup, scaling=bench.scaling, seed=0)
    guards = {"callbacks": [gr.GradientGuard()]} if setup.guard else {}
    return replace(program, model=model, batch_size=setup.batch_size), guards, " + ".join(wanted)


def mended(rows: list[dict[str, Any]]) -> Table:
    """Return for each code how many programs the first prescription of the first cause trains."""
    tried = [row["applied"] for row in rows if "applied" in row]
    table = Table(title="The first prescription of the first cause, applied and trained")
    for column in ("first cause", "reaches the known fix", "applied", "by hand, or raised"):
        table.add_column(column, justify="left" if column == "first cause" else "right")
    for code in [*sorted({one["code"] for one in tried}), "all"]:
        part = [one for one in tried if code in (one["code"], "all")]
        could = [one for one in part if "own" in one]
        left = len(part) - len(could)
        table.add_row(code, _share([one["reached"] for one in could]), f"{len(could)} of {len(part)}", str(left))
    return table


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
