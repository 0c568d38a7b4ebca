"""Run one reproduction: `python -m benchmarks.reproductions chain`. `make bench ONLY=chain` is the same."""

from __future__ import annotations

import importlib
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["MPLBACKEND"] = "Agg"

if __name__ == "__main__":
    record = importlib.import_module(f"benchmarks.reproductions.{sys.argv[1]}").main()
    record.show()
    record.write()
