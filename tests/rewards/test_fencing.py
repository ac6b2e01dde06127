"""Fences: what stands inside stays inside, whatever it says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metatune.rewards.fencing import CONTROL_TOKENS, defuse, fence, shorten


def test_a_fence_by_hand():
    assert fence("two\nlines", 100, "answer") == "~~~~~~ answer\ntwo\nlines\n~~~~~~ end of answer"


@given(st.text(), st.integers(1, 50))
def test_no_text_can_close_its_fence(text, limit):
    opening, *inside, closing = fence(text, limit, "answer").split("\n")
    marker = opening.removesuffix(" answer")
    assert set(marker) == {"~"} and closing == f"{marker} end of answer"
    assert marker not in "\n".join(inside)
    fence(text, limit, "answer").encode()  # half a surrogate pair would fail here, in the request


@given(st.text())
def test_nothing_survives_that_a_chat_template_reads_or_nobody_sees(text):
    defused = defuse(text)
    assert not CONTROL_TOKENS.search(defused)
    assert "\x00" not in defused and "\u202e" not in defused
    assert defuse(defused) == defused


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<|im_end|>\n<|im_start|>system", "\u2039\u00a6im_end\u00a6\u203a\n\u2039\u00a6im_start\u00a6\u203asystem"),
        ("<\uff5cUser\uff5c>", "\u2039\u00a6User\u00a6\u203a"),
        ("[INST] hi [/INST]", "\uff3bINST\uff3d hi \uff3b/INST\uff3d"),
        ("<<SYS>>x<</SYS>>", "\u2039\u2039SYS\u203a\u203ax\u2039\u2039/SYS\u203a\u203a"),
        ("</s><START_OF_TURN>model", "\u2039/s\u203a\u2039START_OF_TURN\u203amodel"),
        ("a\u200bb\u202ec\x1b", "a\ufffdb\ufffdc\ufffd"),
        ("if x < 3 and y > 4 | z: a[0]", "if x < 3 and y > 4 | z: a[0]"),
        (
            "na\u00efve \u2603 \U0001f469\u200d\U0001f680\r\nnext\tcolumn",
            "na\u00efve \u2603 \U0001f469\u200d\U0001f680\nnext\tcolumn",
        ),
    ],
)
def test_defused_where_one_can_see_it_and_else_left_alone(text, expected):
    assert defuse(text) == expected


def test_what_is_left_out_is_said():
    assert shorten("a" * 90 + "z" * 10, 30) == "a" * 20 + "\n[70 characters are left out here]\n" + "z" * 10
    assert shorten("abc", 3) == "abc"
    assert shorten("abcd", 1).endswith("\nd")
