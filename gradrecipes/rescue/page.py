"""A rescue as one HTML page that needs nothing else."""

from __future__ import annotations

from html import escape
from typing import Any

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse}td,th{padding:.2rem .8rem;border-bottom:1px solid #ccc;text-align:right}"
    "td:first-child,th:first-child{text-align:left}pre{background:#f4f4f4;padding:1rem;overflow:auto}"
)


def page(rescue: Any) -> str:
    """Return the page of a `Rescue`."""
    evidence = rescue.evidence
    rows = "".join(
        f"<tr><td>{escape(' + '.join(trial.changes) or 'as it is')}</td><td>{trial.seed}</td><td>{trial.steps}</td>"
        f"<td>{trial.score:.3f}</td><td>{escape(trial.error or _end(trial.broken))}</td></tr>"
        for trial in evidence.trials
    )
    findings = "".join(f"<li>{escape(one.title)} <code>{one.code}</code></li>" for one in rescue.diagnosis.findings)
    code = f"<h2>Changes</h2><pre>{escape(rescue.as_code())}</pre>" if rescue.changes else ""
    times = "".join(f"<tr><td>{escape(part)}</td><td>{value:.1f}</td></tr>" for part, value in evidence.seconds.items())
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Rescue: {rescue.verdict}</title>'
        f"<style>{STYLE}</style></head><body><h1>{escape(rescue.verdict.capitalize())}</h1>"
        f"<pre>{escape(str(rescue))}</pre>{code}<h2>Diagnosis</h2><ul>{findings or '<li>Nothing found.</li>'}</ul>"
        f"<h2>Trials</h2><p>Score: {escape(evidence.measured)}; chance {evidence.chance:.3f}.</p>"
        "<table><tr><th>changes</th><th>seed</th><th>steps</th><th>score</th><th></th></tr>"
        f"{rows}</table><h2>Seconds</h2><table>{times}</table></body></html>"
    )


def _end(broken: int | None) -> str:
    return "" if broken is None else f"not finite from step {broken}"
