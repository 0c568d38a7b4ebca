"""The program of one process of a study that is spread over several: `python -m gradrecipes.studies.worker ORDER`."""

from __future__ import annotations

import multiprocessing.spawn
import pickle
import sys
from pathlib import Path

from gradrecipes.studies import spread


def work(path: str) -> None:
    """Take part in the study of an order that `spread.launch` wrote.

    Args:
        path: Of the order.
    """
    from gradrecipes.studies.study import Study

    preparation, order = pickle.loads(Path(path).read_bytes())
    spread.loading = True
    try:
        multiprocessing.spawn.prepare(preparation)
        build, arguments, give_up, name = pickle.loads(order)
    finally:
        spread.loading = False
    spread.join(Study(build, **arguments), give_up=give_up, name=name)


if __name__ == "__main__":
    from gradrecipes.studies.worker import work as of_the_module  # not that of __main__, which `prepare` replaces

    of_the_module(sys.argv[1])
