"""Errors that libraries raise from values of a recipe, as one line.

TRL, transformers, PEFT and torch look at most options only where they use them. What they then raise comes from a
hundred places, with a traceback through code that the user did not write. It is told as one line that names the
options it speaks of; the traceback goes to `error.txt` in the run's folder, for whoever needs it. A mistake in
metatune or in a user's own code (a reward function) is no such error and keeps its traceback.
"""

import re
import sysconfig
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent.parent
OURS = ("recipes", "trainers", "rewards", "curricula", "eval")
LIBRARIES = tuple({Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")})
LONGEST = 400  # characters of a library's message
GENERATED = "generated code"
REFUSED = "raised where options are turned into a trainer"  # a note on an error


def foreign_error(error: BaseException, options: Mapping[str, Any], output_dir: str | None) -> str | None:
    """Return one line for an error that a library raised; `None` for others, and where its traceback has no place.

    Args:
        error (`BaseException`): what ended the run.
        options (`Mapping[str, Any]`): the options that the recipe sets; those that the error speaks of are named.
        output_dir (`str`, *optional*): where the traceback is written.
    """
    codes = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    files = [Path(code.co_filename).resolve() for code in codes]
    owners = [owner_of(file) for file in files]
    if "user" in owners or not owners or (owners[-1] == "metatune" and not isinstance(error, ValueError)):
        return None
    text = " ".join(str(error).split()) or "no reason given"
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
    spoken = spoken_of(error, options, [*map(library_of, files)], [code.co_name for code in codes])
    named = [f"`{name}`" for name in spoken if name not in text]
    line = f"{', '.join(named)}: {text}" if named else text
    if owners[-1] == "metatune":
        return line
    if output_dir is None:
        return None
    kept = keep_traceback(error, output_dir)
    named_by = [name for name in map(library_of, files) if name != GENERATED] or [GENERATED]
    return f"{line} ({type(error).__name__} in {named_by[-1]}; {kept})"


def exit_code(error: BaseException) -> int:
    """Return the exit code for an error that a library raised: 2 as for every refusal of options, else 1."""
    return 2 if REFUSED in getattr(error, "__notes__", ()) else 1


def owner_of(file: Path) -> str:
    """Tell whose a source file is: `"metatune"`, `"library"` or `"user"`."""
    if any(file.is_relative_to(PACKAGE / folder) for folder in OURS):
        return "metatune"
    generated = not file.suffix or not file.exists()  # `<string>`, `<frozen …>`: code that a library wrote
    return "library" if generated or any(file.is_relative_to(folder) for folder in LIBRARIES) else "user"


def library_of(file: Path) -> str:
    """Return the name of the library that a source file is of."""
    for folder in sorted(LIBRARIES, key=lambda folder: -len(folder.parts)):
        if file.is_relative_to(folder):
            return file.relative_to(folder).parts[0].removesuffix(".py")
    return GENERATED


def spoken_of(
    error: BaseException, options: Mapping[str, Any], owners: Sequence[str], functions: Sequence[str]
) -> list[str]:
    """Return the options that an error is about, as far as its text or place tell.

    Args:
        error (`BaseException`): the error; its words (`learning rate`) or the recipe's are looked for, and if there
            are none, the texts that options have as their values.
        options (`Mapping[str, Any]`): the recipe's.
        owners (`Sequence[str]`): names of the libraries that it came through.
        functions (`Sequence[str]`): names of the functions.
    """
    words = f" {' '.join(re.findall('[a-z0-9]+', str(error).lower()))} "
    named = [name for name in options if f" {name.replace('_', ' ')} " in words]
    texts: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(texts) < 9:  # an error may have been raised from itself
        texts.append(str(cause).lower())
        cause = cause.__cause__ or cause.__context__
    values = {name: value.lower() for name, value in options.items() if isinstance(value, str) and value}
    named = named or [
        name
        for name, value in values.items()
        if any(f"'{value}'" in text or ("/" in value and f"/{value}/" in text) for text in texts)
    ]
    if not named and "from_pretrained" in functions:
        named = [name for name in ("model_name_or_path", "chat_template_path") if name in options]
    return named or [name for name in ("dataset_name", "distributions") if name in options and "datasets" in owners]


def keep_traceback(error: BaseException, output_dir: str) -> str:
    """Write an error's traceback into the run's folder, and say where it is."""
    path = Path(output_dir) / "error.txt"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(traceback.format_exception(error)), encoding="utf-8", errors="backslashreplace")
    except OSError as reason:
        return f"its traceback could not be written to {path}: {reason.strerror}"
    return f"traceback in {path}"
