"""Repair a training: `gradrecipes.rescue(model, x, y, ...)` is the function, and this package what it is made of.

Python sets a subpackage as an attribute of its package, where the function of the same name would stand; so the module
itself can be called.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import types
from typing import Any

__all__ = ["Rescue", "RescueEvidence", "Setup"]

_PUBLIC = {
    "Rescue": "gradrecipes.rescue.verdict",
    "RescueEvidence": "gradrecipes.rescue.verdict",
    "Setup": "gradrecipes.rescue.original",
}


class _CallablePackage(types.ModuleType):
    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Call `gradrecipes.rescue.entry.rescue`."""
        return _function()(*arguments, **keywords)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(_function())


def _function() -> Any:
    return importlib.import_module("gradrecipes.rescue.entry").rescue


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"gradrecipes.rescue has no {name!r}. It has: {', '.join(__all__)}.")


sys.modules[__name__].__class__ = _CallablePackage
