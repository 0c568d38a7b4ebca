"""Learn which variables a train step assigns, before it assigns them."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
from tensorflow.python.ops.resource_variable_ops import BaseResourceVariable, ResourceVariable

from gradrecipes.compat.graphs import current_graph

_LOCK = threading.Lock()
_REPORTS: dict[int, Callable[[Any], None]] = {}
_ORIGINALS = [  # every assignment to a Keras variable ends in one of them
    (kind, name, vars(kind)[name])
    for kind in (BaseResourceVariable, ResourceVariable)
    for name in ("assign", "assign_add", "assign_sub")
    if name in vars(kind)
]


@contextlib.contextmanager
def assignments_reported(report: Callable[[tf.Variable], None]) -> Iterator[None]:
    """Report each variable that this thread is about to assign within the `with` block.

    TensorFlow has no public way to learn of it while a function is traced, so its methods are shadowed meanwhile.
    """
    thread = threading.get_ident()
    with _LOCK:
        before = _REPORTS.get(thread)
        _REPORTS[thread] = report
        for kind, name, original in _ORIGINALS:
            setattr(kind, name, _reporting(original))
    try:
        yield
    finally:
        with _LOCK:
            if before is None:
                del _REPORTS[thread]
            else:
                _REPORTS[thread] = before
            if not _REPORTS:
                for kind, name, original in _ORIGINALS:
                    setattr(kind, name, original)


@functools.cache
def _reporting(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def assign(variable, *args, **kwargs):
        report = _REPORTS.get(threading.get_ident())
        if report is not None:
            report(variable)
        return original(variable, *args, **kwargs)

    return assign


def reading_before(graph: Any) -> contextlib.AbstractContextManager[Any] | None:
    """Return where to read what a step is about to assign; None if that happens in another graph than the step's.

    Within a condition or a loop of the step that is the step's own graph, in which the read comes first.

    Args:
        graph: What `current_graph` returned at the beginning of the step.
    """
    if graph == "eager":
        return tf.init_scope()  # a step that runs eagerly, perhaps with a function in it
    inner = current_graph()
    while inner is not None and inner is not graph:
        inner = getattr(inner, "outer_graph", None)
    return None if inner is None else graph.as_default()  # None where a layer is built, say
