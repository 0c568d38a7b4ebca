"""Every recipe script runs alone, holds what it claims, and measures what the package says of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "recipes").glob("*.py"))
EFFECTS = {
    entry["script"]: entry["effect"]
    for entry in json.loads((ROOT / "gradrecipes" / "recipes" / "measured.json").read_text(encoding="utf-8")).values()
}
NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_holds_what_it_claims_without_a_warning_and_measures_what_is_written_down(script):
    environment = os.environ | {"MPLBACKEND": "Agg", "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    run = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=1800, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert re.findall(r"\w*Warning\b.*", run.stderr) == []
    assert "It holds" in run.stdout
    measured = [line.removeprefix("measured: ") for line in run.stdout.splitlines() if line.startswith("measured: ")]
    expected = [EFFECTS[key] for key in [f"recipes/{script.name}"] if key in EFFECTS]
    assert len(measured) == len(expected)
    for found, written in zip(measured, expected, strict=True):
        assert NUMBER.sub("#", found) == NUMBER.sub("#", written)
        # Other machines round otherwise; a claim that has drifted is off by more.
        assert [float(one) for one in NUMBER.findall(found)] == pytest.approx(
            [float(one) for one in NUMBER.findall(written)], rel=0.5, abs=0.15
        )
