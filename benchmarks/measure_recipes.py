"""Run the recipe scripts as notebooks, keep the notebooks, and write what each measured where the package finds it.

    python benchmarks/measure_recipes.py                # all of them
    python benchmarks/measure_recipes.py 05_architecture

Each script prints one line that begins with "measured: ". Those lines, and nothing else, are what `gradrecipes recipes`
tells of the effect of a practice. A script that fails leaves notebook and line as they were, and the exit code is 1.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {path.stem: path for path in sorted((ROOT / "recipes").glob("*.py"))}
MEASURED = ROOT / "gradrecipes" / "recipes" / "measured.json"
TIMEOUT = 1800  # seconds a cell; on two idle cores a whole script takes a tenth of it


def execute(path: Path) -> nbformat.NotebookNode:
    """Return the executed notebook of a script, without what native code wrote to the terminal."""
    notebook = jupytext.read(path)
    notebook.metadata["kernelspec"] = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    NotebookClient(notebook, timeout=TIMEOUT, kernel_name="python3").execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # the hours of the day at which it ran
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
    return notebook


def measured_line(notebook: nbformat.NotebookNode) -> str | None:
    """Return what follows "measured: " in the output, or None."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    said = "".join(output.get("text", "") for output in outputs).splitlines()
    found = [line.removeprefix("measured: ") for line in said if line.startswith("measured: ")]
    return found[-1] if found else None


def record(name: str, effect: str) -> None:
    """Enter one line into the file, in the order of the scripts."""
    entries = json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.is_file() else {}
    entries[name.split("_", 1)[1]] = {"effect": effect, "script": f"recipes/{name}.py"}
    entries = dict(sorted(entries.items(), key=lambda entry: entry[1]["script"]))
    MEASURED.write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main(names: list[str]) -> int:
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    unknown = [name for name in names if name not in SCRIPTS]
    if unknown:
        print(f"No such script: {', '.join(unknown)}. There are: {', '.join(SCRIPTS)}.", file=sys.stderr)
        return 2
    failed = []
    for name in names or SCRIPTS:
        begun = time.perf_counter()
        try:
            notebook = execute(SCRIPTS[name])
        except CellExecutionError as error:
            failed.append(name)
            print(f"{name} failed:\n{error}", file=sys.stderr)
            continue
        nbformat.write(notebook, ROOT / "notebooks" / f"{name}.ipynb")
        effect = measured_line(notebook)
        if effect is not None:
            record(name, effect)
        print(f"{name}, {time.perf_counter() - begun:.0f} s: {effect or 'makes no entry'}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
