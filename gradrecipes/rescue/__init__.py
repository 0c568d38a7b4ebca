"""Repair a training: `gradrecipes.rescue(model, x, y, ...)` is the function, and this package what it is made of.

Python sets a subpackage as an attribute of its package, where the function of the same name would stand; so the module
itself can be called.
"""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradrecipes.rescue.verdict import Rescue


class _CallablePackage(types.ModuleType):
    def __call__(self, *arguments: Any, **keywords: Any) -> Rescue:
        from gradrecipes.rescue.entry import rescue

        return rescue(*arguments, **keywords)


sys.modules[__name__].__class__ = _CallablePackage
