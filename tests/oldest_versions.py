"""Print the oldest releases that pyproject.toml admits, as constraints for pip; `make test-oldest` installs them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

NOT_OURS = ("dev", "docs", "notebooks", "trackers")  # never imported by the package: the newest will do


def oldest(project: dict) -> list[str]:
    """Return `name==version` for whatever the package itself imports, at the lower bound of its requirement."""
    extras = project["optional-dependencies"]
    every = [*project["dependencies"], *(line for name in extras if name not in NOT_OURS for line in extras[name])]
    found = (re.match(r"([A-Za-z0-9._-]+)>=([\d.]+)", requirement) for requirement in every)
    return sorted({f"{bound[1]}=={bound[2]}" for bound in found if bound})


if __name__ == "__main__":
    settings = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())
    print("\n".join(oldest(settings["project"])))
