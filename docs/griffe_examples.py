"""Let griffe, which reads the docstrings, show an `Example:` as code: it knows `Examples:` only."""

from __future__ import annotations

from typing import Any

import griffe


class ExampleSections(griffe.Extension):
    """Rename the section on the way to the page."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Look at the docstring of whatever was loaded."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
