"""The runner of the benchmarks: it writes what was measured, and its check fails on a regression alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import record, run
from benchmarks.record import Figure, Record, load, mean_figure, share_figure


def stub(monkeypatch: pytest.MonkeyPatch, *figures: Figure) -> None:
    """Make `stub` a benchmark that finds these figures."""
    found = Record("stub", "A stub", "make bench ONLY=stub", list(figures))
    monkeypatch.setattr(run, "BENCHMARKS", {"stub": run.Benchmark(lambda: found, 0.0)})


def ratio(measured: float, spread: float = 0.01) -> Figure:
    return Figure("net: monitor", measured, measured - spread, measured + spread, (0.0, 1.05), n=15, better="lower")


def test_a_run_prints_its_table_and_writes_figures_with_versions(tmp_path, monkeypatch, capsys):
    stub(monkeypatch, ratio(1.02), Figure("no number", None, expected=(1.0, 2.0)))
    assert run.main(["stub", "--results", str(tmp_path)]) == 0
    assert "net: monitor" in capsys.readouterr().out
    written = json.loads((tmp_path / "stub.json").read_text())
    assert {"python", "tensorflow", "keras", "numpy", "scipy", "keras-tuner", "gradrecipes"} == set(written["about"])
    assert [figure["reproduced"] for figure in written["figures"]] == [True, False]
    assert load(tmp_path / "stub.json").figures == [ratio(1.02), Figure("no number", None, expected=(1.0, 2.0))]


def test_numbers_of_numpy_are_written_as_numbers(tmp_path, monkeypatch):
    stub(monkeypatch, Figure("a length", np.float32(2.0), np.float64(1.5), np.float64(2.5), expected=np.float64(2.0)))
    assert run.main(["stub", "--results", str(tmp_path)]) == 0
    assert load(tmp_path / "stub.json").figures == [Figure("a length", 2.0, 1.5, 2.5, expected=2.0)]


@pytest.mark.parametrize(
    ("now", "code"),
    [
        (ratio(1.02), 0),
        (ratio(1.035), 0),  # within both spreads
        (ratio(1.045), 1),  # beyond them, though within the target
        (ratio(0.90), 0),  # better
        (Figure("net: monitor", None, better="lower"), 1),
        (Figure("another", 1.0), 1),
    ],
)
def test_the_check_fails_on_what_is_worse_by_more_than_the_spread(now, code, tmp_path, monkeypatch, capsys):
    stub(monkeypatch, ratio(1.02))
    run.main(["stub", "--results", str(tmp_path)])
    recorded = (tmp_path / "stub.json").read_bytes()
    stub(monkeypatch, now)
    capsys.readouterr()
    assert run.main(["--check", "stub", "--results", str(tmp_path)]) == code
    assert ("REGRESSED  stub: net: monitor" in capsys.readouterr().out) == bool(code)
    assert (tmp_path / "stub.json").read_bytes() == recorded


def test_the_check_asks_for_a_record(tmp_path, monkeypatch, capsys):
    stub(monkeypatch, ratio(1.0))
    assert run.main(["--check", "stub", "--results", str(tmp_path)]) == 1
    assert "make bench ONLY=stub" in capsys.readouterr().out


def test_an_unknown_name_is_refused_with_the_choices(capsys):
    with pytest.raises(SystemExit):
        run.main(["overheat"])
    assert "overhead" in capsys.readouterr().err


def test_several_benchmarks_run_apart_and_one_that_fails_fails_the_whole(tmp_path, monkeypatch, capsys):
    ran = []

    def start(command, cwd):
        ran.append(command[command.index("benchmarks.run") + 1])
        return type("Done", (), {"returncode": int(ran[-1] == "chain")})

    monkeypatch.setattr(run.subprocess, "run", start)
    assert run.main(["chain", "theory", "--results", str(tmp_path)]) == 1
    assert ran == ["chain", "theory"]
    assert "Failed: chain" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("figure", "reproduced"),
    [
        (Figure("a point", 1.2, expected=1.2), True),
        (Figure("rounded alike", 1.24, expected=1.2), True),
        (Figure("another number", 1.26, expected=1.2), False),
        (Figure("the interval meets it", 1.26, 1.19, 1.33, expected=1.2), True),
        (Figure("a target missed, though the interval meets it", 1.06, 1.04, 1.08, (0.0, 1.05), better="lower"), False),
        (Figure("nothing expected", 1.0), None),
        (share_figure("20 of 20", 20, 20, expected=1.0), True),
        (share_figure("12 of 20", 12, 20, expected=1.0), False),
        (mean_figure("three seeds, one of them diverged", [1.0, 1.1, float("nan")], expected=(1.0, 1.1)), True),
        (mean_figure("as near as one sample", [0.5, 0.5], resolution=0.01, expected=(0.505, 0.51)), True),
        (mean_figure("all diverged", [float("nan")], expected=1.0), False),
    ],
    ids=lambda value: value.claim if isinstance(value, Figure) else "",
)
def test_reproduced_means_that_the_interval_meets_what_was_expected(figure, reproduced):
    assert figure.reproduced is reproduced


def test_a_figure_without_direction_may_differ_in_the_digits_of_another_machine():
    assert not Figure("chain", 1.000001, expected=(0.9, 1.1)).regressed(Figure("chain", 1.0, expected=(0.9, 1.1)))
    assert Figure("chain", 1.2, expected=(0.9, 1.1)).regressed(Figure("chain", 1.0, expected=(0.9, 1.1)))


def test_every_benchmark_says_how_to_measure_it_again():
    for path in record.RESULTS.glob("*.json"):
        assert path.stem in run.BENCHMARKS
        assert load(path).command == f"make bench ONLY={path.stem}"


def test_every_reproduction_is_known_to_the_runner():
    folder = Path(run.__file__).parent / "reproductions"
    scripts = {path.stem for path in folder.glob("*.py")} - {"__init__", "runs"}
    assert scripts <= set(run.BENCHMARKS)
