"""What every test stands on: a quiet TensorFlow on two devices, no window, the same random numbers, and patience."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

# Before anything imports TensorFlow or matplotlib.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["MPLBACKEND"] = "Agg"

import pytest
import tensorflow as tf
from hypothesis import HealthCheck, settings

# Two devices for tests of several replicas; TensorFlow cannot split the processor any more once it has begun to work.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)

# Derandomized, so that a failure is the same everywhere; no deadline, because a first TensorFlow call traces.
settings.register_profile(
    "gradrecipes", deadline=None, derandomize=True, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("gradrecipes")


# Files with the longest tests of the second tier; they begin first, so that no process is busy alone at the end.
LONGEST = (
    "recipes/test_scripts.py",
    "test_docs.py",
    "cli/test_demo.py",
    "training/step/test_multi_worker.py",
    "callbacks/test_with_keras_callbacks.py",
    "callbacks/test_compiled_once.py",
    "tuning/test_jobs.py",
    "studies/test_spread.py",
    "cli/test_tune.py",
    "test_readme.py",
    "rescue/test_entry.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; `--no-loadscope-reorder` lets pytest-xdist keep that order."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


# Tracing allocates by the hundred thousand: at Python's own threshold of 700 it collects all the time and finds little,
# since each file is collected as a whole below.
gc.set_threshold(50_000, 10, 10)


@pytest.fixture(autouse=True, scope="module")
def _own_keras_session():
    """Give each file fresh layer names and let go of the graphs of the file before.

    What is left then stays for good: frozen, it is not gone through at each of Python's full collections, which took a
    fifth of the time late in a run.
    """
    keras = sys.modules.get("keras")
    if keras is not None:
        keras.backend.clear_session()  # which collects
    gc.freeze()


@pytest.fixture(autouse=True)
def _same_random_numbers():
    """Seed Python, numpy and Keras, so that no test depends on those before it."""
    keras = sys.modules.get("keras")
    if keras is not None:
        keras.utils.set_random_seed(0)
