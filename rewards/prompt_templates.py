"""What judges and meta judges are asked: Jinja templates, which a user's folder may replace one by one.

A template is checked when it is loaded: an unknown name of a file, a mistake of syntax or a variable that nobody fills
would else end a run in its first meta step. Templates run in Jinja's sandbox.
"""

import traceback
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateSyntaxError, meta
from jinja2.sandbox import SandboxedEnvironment

from .fencing import defuse
from .rubric import RubricBounds, RubricItem, nearest

# File to the variables that it is given.
VARIABLES = {
    "judge_system.j2": {"task"},
    "judge_user.j2": {"task", "items", "prompt", "reference", "completion", "plan", "execution"},
    "plan.j2": {"task", "items", "prompt", "reference"},
    "execute.j2": {"task", "items", "prompt", "plan", "completion"},
    "again.j2": {"reason"},
    "meta_system.j2": set(),
    "analyse.j2": {"task", "items", "distribution", "versions", "cases", "max_words"},
    "refine.j2": {"bounds"},
    "merge.j2": {"task", "current", "revisions", "bounds"},
    "refine_again.j2": {"reason"},
}

# What a template cannot do without: a judge that is not shown the answer would score all the same.
NEEDED = {
    "judge_user.j2": {"items", "completion"},
    "plan.j2": {"prompt"},
    "execute.j2": {"plan", "completion"},
    "again.j2": {"reason"},
    "analyse.j2": {"items", "cases"},
    "merge.j2": {"revisions"},
    "refine_again.j2": {"reason"},
}
OPTIONAL = {"reference", "plan", "execution"}  # `None` where there is none
SAMPLES: dict[str, Any] = dict.fromkeys(("task", "prompt", "completion", "reason", *OPTIONAL), "sample")
SAMPLES |= {"items": [RubricItem("right", "sample", 2), RubricItem("padding", "sample", -1)], "bounds": RubricBounds()}
SAMPLES |= {"distribution": "sample", "current": "sample", "revisions": ["sample"], "max_words": 100}
SAMPLES |= {"versions": [{"number": 1, "outcome": "sample", "changes": "sample"}]}
SAMPLES |= {
    "cases": [
        {"scores": {"right": 1}, "rationales": {"right": "sample"}, "total": 0.5, "gold": gold, "agreement": gold}
        | dict.fromkeys(("why", "prompt", "reference", "completion"), "sample")
        for gold in (None, 0.5)
    ]
}


class PromptTemplates:
    """
    Args:
        folder (`str` or `Path`, *optional*): templates in place of ours, under the same names.

    Raises:
        ValueError: the folder is missing or has no template, has one of another name, or one that cannot be used.
    """

    def __init__(self, folder: str | Path | None = None):
        self._environment = SandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        sources = {name: files(__package__).joinpath("templates", name).read_text("utf-8") for name in VARIABLES}
        own = _read_folder(Path(folder)) if folder is not None else {}
        self._templates = {}
        for name, source in (sources | own).items():
            where = f"{folder}/{name}" if name in own else name
            try:
                used = meta.find_undeclared_variables(self._environment.parse(source))
                self._templates[name] = self._environment.from_string(source)
            except TemplateSyntaxError as error:
                raise ValueError(f"{where}, line {error.lineno}: {error.message}") from error
            if unknown := used - VARIABLES[name]:
                listed = ", ".join(sorted(VARIABLES[name]))
                raise ValueError(f"{where}: unknown variable '{min(unknown)}'; it is given {listed}")
            if missing := NEEDED.get(name, set()) - used:
                raise ValueError(f"{where} does not show '{min(missing)}': put it where the judge is to read it")
            _try(self._templates[name], where, VARIABLES[name], OPTIONAL - NEEDED.get(name, set()))

    def render(self, name: str, **values: Any) -> str:
        """Fill a template. All of it is defused: rubrics, plans and analyses are models' texts too."""
        return defuse(self._templates[name].render(**values).strip())


def _try(template: Template, where: str, variables: set[str], optional: set[str]) -> None:
    """Fill a template with samples, with and without what may be missing: it would else fail in the midst of a run."""
    for left_out in (set(), optional):
        values = {name: None if name in left_out else SAMPLES[name] for name in variables}
        try:
            template.render(**values)
        except Exception as error:  # a template can go wrong in any way
            frames = traceback.extract_tb(error.__traceback__)
            lines = [frame.lineno for frame in frames if frame.filename == "<template>"]
            line = f", line {lines[-1]}" if lines else ""
            raise ValueError(f"{where}{line}: {error}") from error


def _read_folder(folder: Path) -> dict[str, str]:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of templates")
    found = {path.name: path for path in sorted(folder.iterdir()) if not path.name.startswith(".")}
    for name in found:
        if name not in VARIABLES:
            listed = ", ".join(VARIABLES)
            raise ValueError(f"{folder}/{name} is no template of ours (there are {listed}){nearest(name, VARIABLES)}")
    if not found:
        raise ValueError(f"{folder} has no template (there are {', '.join(VARIABLES)})")
    try:
        return {name: path.read_text(encoding="utf-8") for name, path in found.items()}
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder}: a template cannot be read: {error}") from error
