"""The recipes that come with metatune: which there are, and a copy of them to work on.

    metatune recipes                        # a line each
    metatune recipes --copy_to recipes      # copies them, so that every command in their heads works as it stands

Rubrics and accelerate's configurations are copied too. A file that is there already and differs is never overwritten.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from .config import ConfigError, StrictParser, run

FOLDER = Path(__file__).parent


@dataclass
class PackagedArguments:
    """
    What to do with the recipes that come with metatune.

    Args:
        copy_to (`str`, *optional*):
            Folder to copy them to; without it they are listed. Recipes name their rubrics by paths that begin with
            `recipes/`, so that is the folder's best name.
    """

    copy_to: str | None = field(default=None, metadata={"help": "Folder to copy them to, best `recipes`."})


def packaged_files() -> list[Path]:
    """Return every YAML file that comes with metatune, relative to [`FOLDER`], sorted."""
    return sorted(path.relative_to(FOLDER) for path in FOLDER.glob("*/**/*.yaml"))


def summary(path: Path) -> str:
    """Return the first sentence of the comment that a recipe opens with."""
    lines = (FOLDER / path).read_text(encoding="utf-8").splitlines()
    paragraph = re.match(r"((?:# .+\n)+)", "\n".join(lines) + "\n")
    text = " ".join(line.removeprefix("# ") for line in paragraph[1].splitlines()) if paragraph else ""
    return re.split(r"(?<=\.) ", text, maxsplit=1)[0]


def copy_recipes(target: Path) -> int:
    """Copy all files to `target`; returns how many were not there.

    Raises [`ConfigError`] before anything is written if a file of the same name has another content.
    """
    files = packaged_files()
    for path in files:
        found = target / path
        if found.exists() and found.read_bytes() != (FOLDER / path).read_bytes():
            raise ConfigError(f"--copy_to: {found} is there and differs; move it away or give another folder")
    missing = [path for path in files if not (target / path).exists()]
    for path in missing:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_bytes((FOLDER / path).read_bytes())
    return len(missing)


def main(args: PackagedArguments) -> None:
    """List the recipes, or copy them."""
    if args.copy_to is not None:
        try:
            print(f"Copied {copy_recipes(Path(args.copy_to))} files to {args.copy_to}")
        except OSError as error:
            raise ConfigError(f"--copy_to {args.copy_to}: {error.strerror}") from error
        return
    recipes = [path for path in packaged_files() if len(path.parts) == 2 and path.parts[0] != "accelerate"]
    width = max(len(str(path)) for path in recipes)
    for path in recipes:
        print(f"{path!s:{width}}  {summary(path)}")
    print("\nmetatune recipes --copy_to recipes   brings them here")


def make_parser(prog: str | None = None) -> StrictParser:
    """Return the parser of this command's options."""
    return StrictParser(PackagedArguments, prog=prog)


if __name__ == "__main__":
    run(make_parser, main)
