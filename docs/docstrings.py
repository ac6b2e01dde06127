"""Turns docstrings in Hugging Face's manner into what mkdocs shows: plain types, no brackets around names."""

import re

import griffe

PARAMETER = re.compile(r"^(\s+\w+) \((.+?)\):", re.MULTILINE)
OPTION = re.compile(r",? \*optional\*(, defaults to .*)?$")
NAME = re.compile(r"\[`~?([\w.]+)`\]")


def shown(docstring: str) -> str:
    """Return a docstring as mkdocs is to show it; defaults stand in the signature."""
    docstring = PARAMETER.sub(lambda found: f"{found[1]} ({_type(found[2])}):", docstring)
    return NAME.sub(lambda found: f"`{found[1].removeprefix('metatune.')}`", docstring)


def _type(text: str) -> str:
    return NAME.sub(r"\1", OPTION.sub("", text)).replace("`", "").replace("*optional*", "optional")


class HuggingFaceDocstrings(griffe.Extension):
    """Rewrites every docstring as it is loaded."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring is not None and not obj.is_alias:
            obj.docstring.value = shown(obj.docstring.value)
