"""`imports:` in a recipe: modules of the user's own, which bring tasks, verifiers and curricula by registering them.

    imports: [my_tasks]      # my_tasks.py stands where the run is started, or is installed

A module adds to `metatune.curricula.FAMILIES` or `metatune.rewards.VERIFIERS`, or subclasses
`metatune.curricula.Curriculum` with a name. Only what a recipe names is imported, never what stands in a row of data.
"""

import importlib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from .config import ConfigError

HELP = "Modules of your own that register tasks, verifiers or curricula."


def import_module(name: str, option: str) -> ModuleType:
    """Import a module from where the run is started, or an installed one.

    Args:
        name (`str`): such as `my_package.tasks`.
        option (`str`): that names it, for the error.

    Raises [`ConfigError`] if it cannot be imported; of an error in its own code it names file and line.
    """
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except Exception as error:  # a user's module may raise anything
        place = traceback.extract_tb(error.__traceback__)[-1]
        inside = f" ({place.filename}, line {place.lineno})" if not place.filename.startswith("<") else ""
        kind = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
        raise ConfigError(f"{option}: '{name}' cannot be imported: {kind}{error}{inside}") from error


def import_own(names: Sequence[str] | None) -> None:
    """Import the modules that a recipe's `imports` names; raises [`ConfigError`]."""
    for name in names or []:
        import_module(name, "imports")
