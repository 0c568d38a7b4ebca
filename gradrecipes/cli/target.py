"""What `module:function` on a command line names: the user's own function, and the training that it returns."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import inspect
import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from gradrecipes.cli.terminal import PartsShown, UsageError

PLACES = ("model", "x", "y", "batch_size", "validation_data")  # of what a function returns as a tuple
OPTIONS = ("sample_weight", "class_weight", "epochs", "seed")  # that a dict may hold besides
EXPECTED = (
    "Expected (model, x, y), the model compiled; (model, dataset); or a dict with 'model', 'x', 'y' and, as wanted, "
    "'sample_weight', 'class_weight', 'batch_size', 'validation_data', 'epochs', 'seed'."
)
LISTED = 8  # functions that an error names


def load_function(target: str) -> Callable[..., Any]:
    """Return the function that `package.module:function` or `path/to/file.py:function` names.

    The folder in which the command was called, or that of the file, is put on the path of imports, as `python file.py`
    would do.

    Raises:
        UsageError: No such module, file or function, or the module raised when it was imported.
    """
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name.isidentifier():
        raise UsageError(
            f"Which function is meant? Received: {target!r}. Expected module:function, as in train:make, or "
            "path/to/file.py:function."
        )
    module = _load_file(Path(place)) if _is_path(place) else _load_module(place)
    if not hasattr(module, name):
        raise UsageError(f"{place!r} has no function {name!r}. {_at_hand(module, name)}")
    function = getattr(module, name)
    if not callable(function):
        raise UsageError(f"{target!r} is no function. Received: a {type(function).__name__}. {_at_hand(module, name)}")
    return function


def load_training(target: str) -> dict[str, Any]:
    """Call the function that a target names, without arguments, and return the training that it hands over.

    Returns:
        `model` (a `keras.Model`), `x`, `y` (None where `x` brings its targets), and what else the function told of
        `sample_weight`, `class_weight`, `batch_size`, `validation_data`, `epochs` and `seed`.

    Raises:
        UsageError: What `load_named` refuses; the function returned no model.
    """
    training = load_named(target, PLACES, OPTIONS, EXPECTED)
    import keras

    if not isinstance(training["model"], keras.Model):
        raise UsageError(f"{target!r} returned {what(training['model'])} in the place of the model. {EXPECTED}")
    return training


def load_named(target: str, places: Sequence[str], options: Sequence[str], expected: str) -> dict[str, Any]:
    """Call the function that a target names, without arguments, and return by name what it hands over.

    Args:
        target: The function.
        places: Names of what it returns as a tuple; the first, and `x`, are needed.
        options: What a dict may hold besides.
        expected: What an error says of them.

    Raises:
        UsageError: What `load_function` refuses; the function needs arguments, raised, or returned something else.
    """
    function = load_function(target)
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise UsageError(
            f"{target!r} must be callable without arguments. Received: {_named(function)}: {error}. "
            "Write a function without arguments that calls it."
        ) from error
    except ValueError:  # a builtin tells nothing of its arguments
        pass
    with _raising(f"{target!r} raised", _file_of(function)):
        returned = function()
    if isinstance(returned, Mapping):
        unknown = [key for key in returned if key not in (*places, *options)]
        if unknown or places[0] not in returned or "x" not in returned:
            wrong = f"with the unknown {', '.join(map(repr, unknown))}" if unknown else f"with {list(returned)}"
            raise UsageError(f"{target!r} returned a dict {wrong}. {expected}")
        return {"y": None, **returned}
    if isinstance(returned, tuple | list) and 2 <= len(returned) <= len(places):
        return {"y": None, **dict(zip(places, returned, strict=False))}
    raise UsageError(f"{target!r} returned {what(returned)}. {expected}")


def ask_of_training(target: str, ask: Callable[..., Any], *, quiet: bool, **chosen: Any) -> Any:
    """Return what `ask(model, x, y, tell=..., **options)` answers for the training that a target names.

    Args:
        target: See `load_training`.
        ask: What is asked; it says what it is doing through `tell`.
        quiet: Whether stdout is kept for the answer alone, and no progress is shown.
        **chosen: Options of `ask`; None for what the training says, or else the default of `ask`.

    Raises:
        UsageError: What `load_training` or `ask` refuses.
    """
    with PartsShown(quiet=quiet) as parts:
        parts.tell(f"loading {target}")
        # What the user's program prints must not stand between the lines of a JSON document.
        with contextlib.redirect_stdout(sys.stderr) if quiet else contextlib.nullcontext():
            training = load_training(target)
            subject = [training.pop(name) for name in ("model", "x", "y")]
            options = {name: value for part in (training, chosen) for name, value in part.items() if value is not None}
            logging.getLogger("gradrecipes").setLevel(logging.ERROR)
            try:
                return ask(*subject, tell=parts.tell, **options)
            except (TypeError, ValueError) as error:
                raise UsageError(str(error)) from error


def _is_path(place: str) -> bool:
    return place.endswith(".py") or "/" in place or "\\" in place


def _load_module(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise UsageError(f"{name!r} is no name of a module. Expected module:function or path/to/file.py:function.")
    _put_first(Path.cwd())
    try:
        with _raising(f"Importing {name!r} raised", None):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"There is no module {name!r}: neither in this folder ({Path.cwd()}) nor among the installed packages. "
            "For a file, give path/to/file.py:function."
        ) from error


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"There is no file {str(path)!r}. Expected path/to/file.py:function, or module:function.")
    _put_first(path.resolve().parent)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{str(path)!r} is no Python file. Expected path/to/file.py:function.")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(path.stem)
    sys.modules[path.stem] = module  # where classes that are saved or copied look for their own module
    try:
        with _raising(f"Running {str(path)!r} raised", path):
            spec.loader.exec_module(module)
    except BaseException:
        _put_back(path.stem, before)
        raise
    return module


def _put_first(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _put_back(name: str, before: ModuleType | None) -> None:
    if before is None:
        sys.modules.pop(name, None)
    else:
        sys.modules[name] = before


@contextlib.contextmanager
def _raising(what: str, path: Path | None) -> Iterator[None]:
    """Turn what the user's code raises into one line, its traceback above it."""
    try:
        yield
    except UsageError:
        raise
    except SystemExit as stop:
        raise UsageError(
            f"{what} SystemExit({stop.code!r}). It is run to get a model and data; it must return."
        ) from stop
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and what.startswith(f"Importing {error.name!r}"):
            raise
        print_traceback(error, path)
        raise UsageError(
            f"{what} {type(error).__name__}: {error} (its traceback stands above). Does it run with plain python?"
        ) from error


def print_traceback(error: BaseException, path: Path | None) -> None:
    """Print a traceback from the user's own first line on: what the command line did before is no help to anybody."""
    entry = error.__traceback__
    while entry is not None and not _is_users(Path(entry.tb_frame.f_code.co_filename), path):
        entry = entry.tb_next
    traceback.print_exception(type(error), error, entry)


def _is_users(file: Path, path: Path | None) -> bool:
    if path is not None:
        return file.name == path.name
    return "importlib" not in str(file) and file.parent != Path(__file__).parent


def _file_of(function: Callable[..., Any]) -> Path | None:
    try:
        return Path(inspect.getfile(function))
    except TypeError:
        return None


def _at_hand(module: ModuleType, name: str) -> str:
    own = [
        key
        for key, value in vars(module).items()
        if callable(value) and not key.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    close = difflib.get_close_matches(name, own, n=1)
    if close:
        return f"Is {close[0]!r} meant?"
    return f"It has: {', '.join(own[:LISTED])}." if own else "It defines no function at all."


def _named(function: Any) -> str:
    return getattr(function, "__qualname__", type(function).__name__)


def what(value: Any) -> str:
    """Return what a value is, for an error."""
    if value is None:
        return "None (is a return missing?)"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}: ({', '.join(type(part).__name__ for part in value[:6])})"
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
