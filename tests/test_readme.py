"""The README keeps its word: every Python block runs, in order, and every console line that is cheap."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gradrecipes.cli.main import COMMANDS
from gradrecipes.diagnosis.registry import rules
from tests.snippets import blocks, run

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = blocks(README)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Run all blocks, top to bottom, in one namespace and one empty folder; return what was run and what it left."""
    folder, before = tmp_path_factory.mktemp("readme"), Path.cwd()
    os.chdir(folder)
    sys.path.insert(0, str(folder))  # as for a script that stands there
    try:
        done, names = run(README, "README.md", folder)
    finally:
        os.chdir(before)
        sys.path.remove(str(folder))
        sys.modules.pop("mine", None)
    return done, names, folder


@pytest.mark.slow
def test_every_block_that_can_run_was_run(ran):
    done, _, _ = ran
    assert done == [number for number, (kind, _) in enumerate(BLOCKS) if kind in ("python", "console")]
    assert len(done) >= 10


def test_a_block_that_is_not_run_holds_make_and_pip_lines_only():
    others = [text for kind, text in BLOCKS if kind not in ("python", "console")]
    assert {kind for kind, _ in BLOCKS} == {"", "python", "console"}
    starts = {line.split()[0] for text in others for line in text.splitlines()}
    assert starts <= {"make", "pip"}


@pytest.mark.slow
def test_the_snippets_left_what_the_text_says(ran):
    _, names, folder = ran
    assert names["diagnosis"].healthy
    assert names["before"].findings[0].code == "learning_rate_too_high"
    assert len(names["study"].runs["1e30"]) == 3 and names["study"].best == "1"
    assert names["same"].findings == names["diagnosis"].findings
    reasons = ("nonfinite_loss", "nonfinite_gradient")
    assert str(names["guard"].events[0]) in [f"skip at epoch 1, batch 4: {reason}" for reason in reasons]
    assert {"run.trace", "report.html", "run.html", "train.py"} <= {path.name for path in folder.iterdir()}
    assert (folder / "out" / "watch" / "train.html").is_file()
    assert list((folder / "logs").glob("events.out.*"))


def test_every_command_and_every_target_it_names_exists():
    named = set(re.findall(r"gradrecipes (demo|watch|report|\w+) \S+\.(?:py|trace)", README))
    assert named <= set(COMMANDS)
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make (\w+)", README)) & {"demo", "test", "wheel"} <= targets


def test_the_number_of_codes_is_the_one_it_gives():
    kinds = [entry.kind.value for entry in rules().values()]
    told = f"{len(kinds)} codes: {kinds.count('cause')} causes .* and {kinds.count('symptom')} symptoms"
    assert re.search(told, README.replace("\n", " "))


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("make") and shutil.which("sed")), reason="needs make and sed")
def test_what_make_wheel_writes_for_an_index_has_no_relative_link(tmp_path):
    folder = tmp_path / "build" / "source" / "gradrecipes-0"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(README, encoding="utf-8")
    url = "https://example.org/someone/gradrecipes"
    dry = ["make", "-n", "wheel", f"SOURCE_URL={url}", "REVISION=v1"]
    lines = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    (rewrite,) = [line for line in lines if "sed -E" in line]
    subprocess.run(rewrite, shell=True, cwd=tmp_path, check=True)
    written = (folder / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"\]\((?!https://)[^)]*\)", written) == []
    assert blocks(written) == BLOCKS
    assert f"]({url}/raw/v1/docs/heat_map.png)" in written and f"]({url}/blob/v1/LICENSE)" in written


def test_every_link_and_picture_leads_to_a_file():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_the_extras_it_names_exist():
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = set(re.findall(r"`\[(\w+)\]`", README)) | set(re.findall(r"\.whl\[(\w+)\]", README))
    assert named and named <= set(extras)
