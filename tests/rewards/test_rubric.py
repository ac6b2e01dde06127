"""Rubrics: totals by hand and as properties, files, bounds, what is refused, and the diff."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metatune.rewards.rubric import Rubric, RubricBounds, RubricItem, diff_rubrics, read_rubric

ESSAY = Rubric(
    "Write an essay.",
    (
        RubricItem("structure", "An argument that leads somewhere.", 5),
        RubricItem("padding", "Words that say nothing.", -3),
    ),
)
names = st.from_regex(r"[a-z][a-z0-9_]{0,39}", fullmatch=True)
items = st.builds(
    RubricItem,
    names,
    st.text("abc ", min_size=1).filter(str.strip),
    st.integers(-9, 9).filter(lambda points: points != 0),
)
rubrics = st.builds(
    Rubric,
    st.just("Do it."),
    st.lists(items, min_size=1, max_size=6, unique_by=lambda item: item.name)
    .filter(lambda several: any(item.points > 0 for item in several))
    .map(tuple),
)


def test_a_total_by_hand():
    assert (ESSAY.lowest, ESSAY.highest) == (-3, 5)
    assert ESSAY.total({"structure": 5, "padding": 0}) == 1.0
    assert ESSAY.total({"structure": 0, "padding": -3}) == 0.0
    assert ESSAY.total({"padding": -1, "structure": 4}) == pytest.approx((3 + 3) / 8)


@given(rubrics, st.data())
def test_totals_stay_on_one_scale(rubric, data):
    scores = {item.name: data.draw(st.integers(*item.range)) for item in rubric.items}
    assert 0 <= rubric.total(scores) <= 1
    assert rubric.total({item.name: item.range[1] for item in rubric.items}) == 1.0
    assert rubric.total({item.name: item.range[0] for item in rubric.items}) == 0.0
    twice = Rubric(rubric.task, tuple(RubricItem(item.name, item.criterion, 2 * item.points) for item in rubric.items))
    assert twice.total({name: 2 * score for name, score in scores.items()}) == pytest.approx(rubric.total(scores))
    for item in rubric.items:
        if scores[item.name] < item.range[1]:
            assert rubric.total({**scores, item.name: scores[item.name] + 1}) > rubric.total(scores)


@given(rubrics)
def test_a_rubric_survives_json(rubric):
    assert Rubric.from_dict(json.loads(json.dumps(rubric.to_dict()))) == rubric


def accepts(schema, value):
    """Whether a value meets a schema of the keywords that ours use."""
    if "anyOf" in schema:
        return any(accepts(choice, value) for choice in schema["anyOf"])
    if schema["type"] == "object":
        same = isinstance(value, dict) and set(value) == set(schema["required"]) == set(schema["properties"])
        return same and all(accepts(part, value[name]) for name, part in schema["properties"].items())
    if schema["type"] == "integer":
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and schema["minimum"] <= value <= schema["maximum"]
    assert schema["type"] == "string"
    return isinstance(value, str) and len(value) <= schema["maxLength"]


@given(rubrics, st.data())
def test_the_schema_lets_through_what_has_a_total(rubric, data):
    chosen = st.lists(st.sampled_from([*(item.name for item in rubric.items), "other"]), unique=True)
    scores = {name: data.draw(st.one_of(st.integers(-10, 10), st.booleans())) for name in data.draw(chosen)}
    judgement = {name: {"rationale": "so", "score": score} for name, score in scores.items()}
    try:
        rubric.total(scores)
    except ValueError:
        assert not accepts(rubric.schema(), judgement)
    else:
        assert accepts(rubric.schema(), judgement)
    assert list(rubric.schema()["properties"]) == [item.name for item in rubric.items], "in the rubric's order"


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"structure": 5}, "no score for 'padding'"),
        (
            {"structure": 5, "padding": 0, "stucture": 1},
            "'stucture', which the rubric does not have; did you mean 'struct",
        ),
        ({"structure": 6, "padding": 0}, "the score of 'structure' is a whole number from 0 to 5, not 6"),
        ({"structure": 5, "padding": 1}, "the score of 'padding' is a whole number from -3 to 0, not 1"),
        ({"structure": 4.0, "padding": 0}, "not 4.0"),
        ({"structure": True, "padding": 0}, "not True"),
    ],
)
def test_a_total_comes_of_exactly_the_items_that_are_asked_for(scores, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        ESSAY.total(scores)


GOOD = {"name": "a", "criterion": "b", "points": 1}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a"], "a rubric is a mapping with task, items, not list"),
        ({"task": "t"}, "a rubric needs 'items'"),
        ({"task": "t", "items": []}, "items is a list of at least one item"),
        ({"task": "t", "items": [GOOD], "itms": 1}, "unknown key 'itms' in a rubric; did you mean 'items'?"),
        ({"task": " ", "items": [GOOD]}, "the task is a text that says something, not ' '"),
        ({"task": "t", "items": [GOOD, "x"]}, "item 2: an item is a mapping with name, criterion, points, not str"),
        ({"task": "t", "items": [GOOD, GOOD]}, "several items are called 'a'"),
        ({"task": "t", "items": [{**GOOD, "points": -1}]}, "no item gives points"),
        ({"task": "t", "items": [{**GOOD, "points": 0}]}, "item 1: the points of 'a' are a whole number other than 0"),
        ({"task": "t", "items": [{**GOOD, "points": "5"}]}, "not '5'"),
        ({"task": "t", "items": [{**GOOD, "points": True}]}, "not True"),
        ({"task": "t", "items": [{**GOOD, "name": "A b"}]}, "item 1: an item's name is up to 40 of a-z"),
        ({"task": "t", "items": [{**GOOD, "name": "a" * 41}]}, "item 1: an item's name is up to 40 of a-z"),
        ({"task": "t", "items": [{**GOOD, "criterion": None}]}, "the criterion of 'a' is a text"),
        ({"task": "t", "items": [{**GOOD, "criterion": "x\x1b[0m"}]}, r"the control character '\x1b'"),
        ({"task": "t", "items": [{"name": "a", "points": 1}]}, "item 1: an item needs 'criterion'"),
        (
            {"task": "t", "items": [{**GOOD, "pionts": 1}]},
            "item 1: unknown key 'pionts' in an item; did you mean 'points'?",
        ),
    ],
)
def test_what_is_no_rubric(values, message):
    with pytest.raises(ValueError) as error:
        Rubric.from_dict(values)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_texts_of_all_languages():
    """Spaces that do not break and joiners are part of French and Persian, and models write them in English too."""
    for text in (
        "5\u202fpoints\u00a0!",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "a\n- b\tc",
        "\U0001f469\u200d\U0001f52c",
    ):
        assert RubricItem("a", text, 1).criterion == text
    for text in ("a\u202eb", "a\x00b", "a\ud800b", "a\u200bb", "a\rb"):
        with pytest.raises(ValueError, match=r"has the control character '.+': take it out") as error:
            RubricItem("a", text, 1)
        assert str(error.value).isascii()


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"max_items": 1}, "the rubric has 2 items, and 1 are allowed"),
        ({"max_points": 4}, "'structure' has 5 points, and 4 are allowed"),
        ({"max_criterion_characters": 30}, "the criterion of 'structure' has 33 characters, and 30 are allowed"),
        ({"max_task_characters": 3}, "the task has 15 characters, and 3 are allowed"),
    ],
)
def test_bounds(bounds, message):
    with pytest.raises(ValueError, match=message):
        Rubric.from_dict(ESSAY.to_dict(), RubricBounds(**bounds))
    assert Rubric.from_dict(ESSAY.to_dict(), RubricBounds()) == ESSAY
    with pytest.raises(ValueError, match="max_items must be a whole number of at least 1"):
        RubricBounds(max_items=0)


def test_the_schema_of_a_rubric_has_its_bounds():
    schema = RubricBounds(max_items=3, max_points=4, max_criterion_characters=50).schema()["properties"]["items"]
    assert (schema["minItems"], schema["maxItems"]) == (1, 3)
    item = schema["items"]["properties"]
    assert item["criterion"]["maxLength"] == 50
    assert [accepts(item["points"], points) for points in (-5, -4, 0, 4, 5)] == [False, True, False, True, False]


def test_files(tmp_path):
    (tmp_path / "rubric.json").write_text(json.dumps(ESSAY.to_dict()))
    assert read_rubric(tmp_path / "rubric.json") == ESSAY
    text = "task: Write.\nitems:\n  - {name: order, criterion: It has one., points: 2}\n"
    (tmp_path / "rubric.yaml").write_text(text)
    assert read_rubric(tmp_path / "rubric.yaml").items[0].points == 2
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "bad.yaml").write_text("items: [}")
    (tmp_path / "few.yaml").write_text("task: Write.\nitems: []\n")
    item = '"name": "a", "criterion": "b", "points": 5, "points": -3'
    (tmp_path / "twice.json").write_text(f'{{"task": "t", "items": [{{{item}}}]}}')
    (tmp_path / "twice.yaml").write_text(f"task: t\nitems:\n  - {{{item}}}\n")
    for name, message in (
        ("bad.json", ""),
        ("bad.yaml", ""),
        ("few.yaml", "items is a list"),
        ("twice.json", "the key 'points' stands twice in one mapping"),
        ("twice.yaml", "the key 'points' stands twice in one mapping"),
        ("no.json", "no such file"),
    ):
        with pytest.raises(ValueError, match=f"{name}: .*{message}"):
            read_rubric(tmp_path / name)
    with pytest.raises(ValueError, match=r"rubric.json: the rubric has 2 items"):
        read_rubric(tmp_path / "rubric.json", RubricBounds(max_items=1))


def test_the_diff_says_what_changed():
    new = Rubric(
        "Write an essay.",
        (RubricItem("structure", "An argument.", 4), RubricItem("evidence", "Facts with a source.", 2)),
    )
    assert diff_rubrics(ESSAY, ESSAY) == []
    assert diff_rubrics(ESSAY, new) == [
        "~ structure: +5 -> +4 points",
        "~ structure: 'An argument that leads somewhere.' -> 'An argument.'",
        "+ evidence (+2): Facts with a source.",
        "- padding (-3): Words that say nothing.",
    ]
    turned = Rubric("Write a letter.", (new.items[1], *ESSAY.items[::-1]))
    assert diff_rubrics(ESSAY, turned) == [
        "~ task: 'Write an essay.' -> 'Write a letter.'",
        "~ order: structure, padding -> padding, structure",
        "+ evidence (+2): Facts with a source.",
    ]


@given(rubrics, rubrics)
def test_there_is_a_diff_where_rubrics_differ(old, new):
    assert bool(diff_rubrics(old, new)) == (old != new)
