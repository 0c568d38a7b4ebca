from __future__ import annotations

import os
import subprocess
import sys

import pytest

SILENCED = "from gradrecipes.cli.terminal import silence_tensorflow_notes; silence_tensorflow_notes()\n"
NOTES = """WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I0000 00:00:1795924732.833687    2971 port.cc:153] oneDNN custom operations are on.
"""
ERROR = "F0000 00:00:1795924732.9 cpu_feature_guard.cc:110] compiled to use AVX instructions, but there are none.\n"

pytestmark = pytest.mark.slow  # each starts a process


def run(script, level=None, path=()):
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    environment["PYTHONPATH"] = os.pathsep.join([*map(str, path), os.getcwd()])
    if level is not None:
        environment["TF_CPP_MIN_LOG_LEVEL"] = level
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)


@pytest.fixture
def stand_in(tmp_path):
    """Write a `tensorflow` that says at its import, below Python, what the real one says, and then what it is told."""

    def write(ending):
        notes = f"import os\nos.write(2, {NOTES.encode()!r})\nos.write(2, b'10% ')\n"
        (tmp_path / "tensorflow.py").write_text(f"{notes}{ending}\n")
        return [tmp_path]

    return write


def test_tensorflow_starts_silently():
    done = run(
        f"{SILENCED}import tensorflow as tf\ntf.config.list_physical_devices('GPU'); print(tf.constant(2.0).numpy())"
    )
    assert done.returncode == 0 and done.stdout == "2.0\n"
    assert done.stderr == ""


def test_only_the_notes_are_left_out(stand_in):
    done = run(
        f"{SILENCED}import os, tensorflow\nos.write(2, b'I0000 1 after')",
        path=stand_in(f"os.write(2, {ERROR.encode()!r})"),
    )
    assert done.returncode == 0
    assert done.stderr == f"10% {ERROR}I0000 1 after"


def test_an_import_that_aborts_or_raises_says_why(stand_in):
    aborted = run(f"{SILENCED}import tensorflow", path=stand_in(f"os.write(2, {ERROR.encode()!r}); os.abort()"))
    assert aborted.returncode < 0 and aborted.stderr.startswith(f"10% {ERROR}")
    raised = run(f"{SILENCED}import tensorflow", path=stand_in("raise ImportError('no libtensorflow')"))
    assert raised.returncode == 1 and raised.stderr.rstrip().endswith("ImportError: no libtensorflow")


def test_a_level_that_the_user_sets_stays(stand_in):
    script = f"{SILENCED}import os, tensorflow; print(os.environ['TF_CPP_MIN_LOG_LEVEL'])"
    everything = run(script, level="0", path=stand_in(""))
    assert everything.stdout == "0\n" and everything.stderr == f"{NOTES}10% "
    warnings = run(script, level="1", path=stand_in(""))
    assert warnings.stdout == "1\n" and warnings.stderr == "10% "
