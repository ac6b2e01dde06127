"""What a user may import is listed in `__all__`, is documented, is annotated, and is not heavy to look at."""

import inspect
import subprocess
import sys
from importlib import import_module
from typing import Any

import pytest

PACKAGES = ("curricula", "eval", "rewards", "trainers")
PUBLIC = [(package, name) for package in PACKAGES for name in import_module(f"metatune.{package}").__all__]
HEAVY = ("torch", "transformers", "datasets", "trl", "vllm", "matplotlib", "openai", "sympy")


def own_functions(thing: Any) -> dict[str, Any]:
    """The functions whose signatures a user meets: a function itself, or a class's constructor and public methods."""
    if inspect.isfunction(thing):
        return {thing.__name__: thing}
    found = {}
    for cls in thing.__mro__ if inspect.isclass(thing) else ():
        if cls.__module__.startswith("metatune."):
            for name, member in vars(cls).items():
                function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
                ours = inspect.isfunction(function) and function.__module__ == cls.__module__
                if ours and (name in ("__init__", "__call__") or not name.startswith("_")):
                    found.setdefault(name, function)
    return found


def unannotated(function: Any) -> list[str]:
    signature = inspect.signature(function)
    missing = [
        name
        for name, parameter in signature.parameters.items()
        if name not in ("self", "cls") and parameter.annotation is parameter.empty
    ]
    returns = function.__name__ == "__init__" or signature.return_annotation is not signature.empty
    return missing if returns else [*missing, "return"]


@pytest.mark.parametrize("package", PACKAGES)
def test_all_is_sorted_and_whole(package):
    module = import_module(f"metatune.{package}")
    assert len(set(module.__all__)) == len(module.__all__)
    assert set(getattr(module, "_LAZY", {})) <= set(module.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = module.no_such_name


@pytest.mark.parametrize(("package", "name"), PUBLIC)
def test_public_name_is_documented_and_annotated(package, name):
    thing = getattr(import_module(f"metatune.{package}"), name)
    if not (inspect.isclass(thing) or inspect.isfunction(thing)):
        assert name.isupper()  # a constant or a registry
        return
    assert thing.__module__.startswith("metatune.")
    assert inspect.getdoc(thing)
    for called, function in own_functions(thing).items():
        assert not unannotated(function), f"{name}.{called}"
        if called != "__init__" and not inspect.isfunction(thing):
            assert inspect.getdoc(getattr(thing, called)), f"{name}.{called} has no docstring"


@pytest.mark.parametrize("package", PACKAGES)
def test_import_is_light(package):
    code = f"import sys, metatune.{package}; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
