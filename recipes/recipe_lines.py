"""Lines of a recipe's keys at any depth, so that an error about `distributions[1].verifier` names the right one."""

import re
from collections.abc import Iterator
from typing import Any

import yaml


def lines_of(root: yaml.Node) -> dict[str, int]:
    """Return the line, counted from 1, of every key and list entry, by its path: `distributions[1].config.terms`."""
    return dict(_walk(root, "", set()))


def _walk(node: yaml.Node, path: str, ancestors: set[int]) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.ScalarNode) or id(node) in ancestors:  # an alias may point back at its own parent
        return
    ancestors = ancestors | {id(node)}
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield f"{path}[{index}]", item.start_mark.line + 1
            yield from _walk(item, f"{path}[{index}]", ancestors)
        return
    for key, value in node.value:
        below = f"{path}.{key.value}" if path else str(key.value)
        yield below, key.start_mark.line + 1
        yield from _walk(value, below, ancestors)


def repeated_key(root: yaml.Node) -> tuple[str, int, int] | None:
    """Find a mapping, at any depth, that has a key twice: YAML would keep the last in silence.

    Returns:
        the key, its line, and the line where it is first; `None` if there is no such key.
    """
    pending, seen_nodes = [root], set()
    while pending:
        node = pending.pop()
        if id(node) in seen_nodes or isinstance(node, yaml.ScalarNode):
            continue
        seen_nodes.add(id(node))  # an alias may point back at its own parent
        if isinstance(node, yaml.SequenceNode):
            pending.extend(node.value)
            continue
        first_line: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value != "<<" and str(key.value) in first_line:
                return str(key.value), line, first_line[str(key.value)]
            first_line[str(key.value)] = line
            pending.append(value)
    return None


def line_of(message: str, values: dict[str, Any], lines: dict[str, int]) -> int | None:
    """Return the line that a message is about, `None` if it names no key.

    A message begins with a key or an entry: `judge: unknown key 'rubirc'`, `distributions[0] (gsm8k): no data at
    'x.jsonl'`. The line is that of the deepest key that it mentions there, by name or else by value.

    Args:
        message (`str`): the error.
        values (`dict[str, Any]`): the recipe.
        lines (`dict[str, int]`): as [`lines_of`] returns them.
    """
    begins = re.match(r"(?:block )?`?(\w+)`?((?:\[\d+\])*)", message)
    if begins is None or begins[1] not in lines:
        return None
    path, value = begins[1], values.get(begins[1])
    for index in map(int, re.findall(r"\d+", begins[2])):
        if not isinstance(value, list) or index >= len(value):
            return lines[path]
        path, value = f"{path}[{index}]", value[index]
    text = re.sub(r"^ \([^)]*\)", "", message[begins.end() :])  # the name of a distribution
    for word in re.findall(r"\w+", text):
        if isinstance(value, dict) and word in value and f"{path}.{word}" in lines:
            path, value = f"{path}.{word}", value[word]
    quoted = set(re.findall(r"'([^']*)'", text))
    if isinstance(value, dict):
        path = next((f"{path}.{key}" for key, item in value.items() if str(item) in quoted), path)
    return lines.get(path)
