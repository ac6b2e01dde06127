"""Lines of a recipe's keys at any depth, and which one an error is about."""

import pytest
import yaml

from metatune.recipes.recipe_lines import line_of, lines_of, repeated_key

TEXT = """\
curriculum: dump
distributions:
  - name: sums
    source: arithmetic
    config:
      trems: 3
  - {name: gsm8k, source: dataset,
     path: gsm.jsonl, verifer: math}
grpo:
  curiculum: dump
judge: {url: x,
  rubirc: y}
"""


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("curriculum: unknown 'dmup'", 1),
        ("`distributions` is empty", 2),
        ("distributions[0] (sums): it has no items", 3),
        ("distributions[0] (sums), config: unknown key 'trems'", 6),
        ("distributions[1] (gsm8k): unknown key 'verifer'", 8),
        ("distributions[1] (gsm8k): no data at 'gsm.jsonl'", 8),
        ("distributions[7] (x): unknown key 'verifer'", 2),
        ("block `grpo`: unknown key 'curiculum'", 10),
        ("judge: unknown key 'rubirc'", 12),
        ("something else", None),
    ],
)
def test_the_line_that_a_message_is_about(message, line):
    assert line_of(message, yaml.safe_load(TEXT), lines_of(yaml.compose(TEXT))) == line


def test_a_key_again():
    assert repeated_key(yaml.compose(TEXT)) is None
    assert repeated_key(yaml.compose("a: {b: 1,\n c: 2,\n b: 3}")) == ("b", 3, 1)


def test_aliases_are_walked_once():
    assert lines_of(yaml.compose("a: &x {b: 1}\nc: *x\n"))["c.b"] == 1
