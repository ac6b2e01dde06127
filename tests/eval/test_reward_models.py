"""Reward models on pairs: what is counted, left out and combined, with a model whose scores are known."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metatune.eval.reward_bench import SECTIONS, section_weights
from metatune.eval.reward_models import Pairs, PairScores, as_turns, ensembles, score_pairs, summarize
from metatune.eval.reward_plots import plot_reward_models

QUICK = {"num_resamples": 200}


class CountsLetters:
    """A reward model that gives each letter x of a response `value`, and y its negative; reads `max_length` tokens."""

    def __init__(self, tokenizer, value=1.0, max_length=20):
        self.tokenizer, self.value, self.max_length = tokenizer, value, max_length
        self.x, self.y = tokenizer.convert_tokens_to_ids(["x", "y"])

    def score_ids(self, responses):
        rewards = [self.value * (ids.count(self.x) - ids.count(self.y)) for ids in responses]
        fits = [len(ids) <= self.max_length for ids in responses]
        return np.where(fits, np.array(rewards, dtype=float), np.nan)


def pairs_of(*texts, prompt="p: ", groups=None, **columns):
    """Pairs of (chosen, rejected), each with a prompt of its own by default."""
    chosen, rejected = zip(*texts, strict=True)
    groups = list(range(len(texts))) if groups is None else groups
    return Pairs(list(chosen), list(rejected), [prompt] * len(texts), groups, **columns)


def summary_of(tokenizer, pairs, **options):
    return summarize(score_pairs(CountsLetters(tokenizer, **options), pairs), pairs, **QUICK)


def test_accuracy_counts_ties_half_and_reports_equal_responses(tokenizer):
    summary = summary_of(tokenizer, pairs_of(("xx", "x"), ("y", "x"), ("x", "x"), ("xy", "ab")))
    assert summary["accuracy"] == pytest.approx((1 + 0 + 0.5 + 0.5) / 4)
    assert (summary["num_pairs"], summary["num_ties"], summary["num_equal"]) == (4, 2, 1)
    assert summary["mean_margin"] == pytest.approx((1 - 2) / 4)


def test_what_is_too_long_is_left_out_of_every_number_and_counted(tokenizer):
    fine, too_long = [("xx", "x"), ("", "x")], [("y" * 30, "x"), ("y", "y" * 30)]
    summary = summary_of(tokenizer, pairs_of(*fine, *too_long, strength=np.arange(4.0), subsets=list("aabb")))
    alone = summary_of(tokenizer, pairs_of(*fine))
    for key in ("accuracy", "ci_low", "ci_high", "num_pairs", "mean_margin", "calibration", "length"):
        assert summary[key] == alone[key], key
    assert (summary["num_too_long"], alone["num_too_long"], summary["num_not_finite"]) == (2, 0, 0)
    assert summary["subsets"]["b"] == {
        **dict.fromkeys(("accuracy", "ci_low", "ci_high")), "num_pairs": 0, "num_prompts": 0
    }  # fmt: skip
    assert [row["num_pairs"] for row in summary["by_strength"]] == [1, 1, 0, 0]


def test_a_score_that_is_no_number_is_no_wrong_answer(tokenizer):
    summary = summary_of(tokenizer, pairs_of(("x", "y"), ("y", "x")), value=np.inf)
    assert summary["accuracy"] is None and summary["calibration"] is None and summary["score_std"] is None
    assert (summary["num_pairs"], summary["num_not_finite"]) == (0, 2)
    json.dumps(summary, allow_nan=False)


def test_lengths_are_tokens_after_the_prompt(tokenizer):
    texts, groups = [("xx", "xy"), ("xabc", "xa"), ("x", "y")], ["p", "p", "q"]
    pairs = pairs_of(*texts, prompt="prompt: ", groups=groups)
    lengths = score_pairs(CountsLetters(tokenizer), pairs).lengths
    assert lengths.tolist() == [[3, 3], [5, 3], [2, 2]], "every text ends with the end token"
    # without a prompt of its own, what all responses of it begin with: "prompt: x" for p
    held = Pairs([f"prompt: {c}" for c, _ in texts], [f"prompt: {r}" for _, r in texts], None, groups)
    assert score_pairs(CountsLetters(tokenizer), held).lengths.tolist() == [[2, 2], [4, 2], [2, 2]]

    def turn(role, text):
        return [{"role": role, "content": text}]

    asked = Pairs([turn("assistant", "xx")], [turn("assistant", "")], [turn("user", "prompt")], ["p"])
    assert score_pairs(CountsLetters(tokenizer), asked).lengths.tolist() == [[3, 1]], "the role's token is in it"


def test_accuracy_by_the_longer_response(tokenizer):
    pairs = pairs_of(("xaa", "x"), ("x", "xaa"), ("xxx", "x"), ("x", "yyy"), ("x", "y"))
    length = summary_of(tokenizer, pairs)["length"]
    assert (length["chosen_longer"]["accuracy"], length["chosen_longer"]["num_pairs"]) == (0.75, 2)
    assert (length["chosen_shorter"]["accuracy"], length["chosen_shorter"]["num_pairs"]) == (0.75, 2)
    assert (length["same_length"]["accuracy"], length["same_length"]["num_pairs"]) == (1, 1)
    assert length["accuracy_of_longer"] == 0.5
    # within: of two prompts with another score and another length, one prefers the longer, one the shorter response
    assert (length["correlation_within_prompts"], length["num_prompts_within"]) == (0, 2)


def test_a_model_that_likes_length_is_found_out(tokenizer):
    pairs = pairs_of(*[("x" * long, "x" * short) for long, short in ((3, 1), (9, 4), (2, 1))], ("x", "xx"))
    length = summary_of(tokenizer, pairs)["length"]
    assert [length["correlation"], length["correlation_within_prompts"]] == pytest.approx([1, 1])
    assert (length["chosen_longer"]["accuracy"], length["chosen_shorter"]["accuracy"]) == (1, 0)


def test_a_response_in_several_pairs_counts_once_in_correlations(tokenizer):
    one = pairs_of(("xxx", "x"), ("xx", "x"), groups=["p", "p"])
    again = pairs_of(("xxx", "x"), ("xx", "x"), ("xxx", "x"), ("xxx", "x"), groups=["p"] * 4)
    assert summary_of(tokenizer, one)["length"]["correlation"] == pytest.approx(
        summary_of(tokenizer, again)["length"]["correlation"]
    )


def test_tenths_by_strength(tokenizer):
    texts = [("x", "y") if i >= 10 else ("y", "x") for i in range(20)]
    rows = summary_of(tokenizer, pairs_of(*texts, strength=np.arange(20.0) - 10))["by_strength"]
    assert [row["accuracy"] for row in rows] == [0] * 5 + [1] * 5
    assert (rows[0]["low"], rows[0]["high"], rows[0]["strength"]) == (-10, -9, -9.5)
    few = summary_of(tokenizer, pairs_of(*texts[:3], strength=np.array([2.0, 0, 1])))["by_strength"]
    assert [row["strength"] for row in few] == [0, 1, 2]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.text("xya", max_size=5), st.text("xya", max_size=5)), min_size=1, max_size=6))
def test_exchanging_the_responses_turns_the_accuracy_round(texts):
    from .conftest import make_tokenizer

    tokenizer = make_tokenizer()
    there, back = (summary_of(tokenizer, pairs_of(*side)) for side in (texts, [pair[::-1] for pair in texts]))
    assert there["accuracy"] + back["accuracy"] == pytest.approx(1)
    assert there["length"]["correlation"] == pytest.approx(back["length"]["correlation"])


# Several models


def test_ensembles_by_hand():
    def scores(chosen, rejected):
        zeros = np.zeros((1, 2))
        return PairScores(np.array([[chosen, rejected]]), zeros, zeros.astype(bool), np.array([False]))

    found = ensembles({"a": scores(4.0, 2.0), "b": scores(0.0, 1.0), "c": scores(2.0, 3.0)})
    assert found["ensemble mean"].rewards == pytest.approx(np.array([[2, 2]]))
    assert found["ensemble min"].rewards == pytest.approx(np.array([[0, 1]]))
    stds = np.std([4, 0, 2]), np.std([2, 1, 3])
    assert found["ensemble mean_minus_std"].rewards == pytest.approx(np.array([[2 - stds[0], 2 - stds[1]]]))
    assert ensembles({"a": scores(1.0, 2.0)}) == {}, "one model is no ensemble"


def test_an_ensemble_scores_what_all_its_models_score(tokenizer):
    pairs = pairs_of(("x", "y"), ("x" * 10, "y"))
    models = [CountsLetters(tokenizer, max_length=length) for length in (20, 8)]
    scores = {name: score_pairs(model, pairs) for name, model in zip("ab", models, strict=True)}
    together = summarize(ensembles(scores)["ensemble mean"], pairs, **QUICK)
    assert (together["num_pairs"], together["num_too_long"], together["accuracy"]) == (1, 1, 1)


def test_the_difference_is_over_pairs_that_both_have_scored(tokenizer):
    pairs = pairs_of(("x", "y"), ("y", "x"), ("x" * 10, "y"))
    first, second = CountsLetters(tokenizer), CountsLetters(tokenizer, value=-1.0, max_length=8)
    reference = score_pairs(first, pairs)
    found = summarize(score_pairs(second, pairs), pairs, reference=reference, **QUICK)["against_first"]
    assert (found["difference"], found["num_pairs"]) == (0, 2), "one is right where the other is wrong"
    assert (found["ci_low"], found["ci_high"]) == (-1, 1)
    same = summarize(reference, pairs, reference=reference, **QUICK)["against_first"]
    assert (same["difference"], same["num_pairs"]) == (0, 3)
    unseen = 1 - 0.025 ** (1 / 3)  # the share of pairs that differ which three that agree rule out
    assert (same["ci_low"], same["ci_high"]) == pytest.approx((-unseen, unseen))


# RewardBench


def test_sections_have_the_leaderboards_subsets():
    assert {section: len(subsets) for section, subsets in SECTIONS.items()} == {
        "Chat": 5, "Chat Hard": 6, "Safety": 5, "Reasoning": 7
    }  # fmt: skip


def test_maths_weighs_as_much_as_all_code():
    subsets = ["math-prm"] * 447 + [f"hep-{name}" for name in ("cpp", "go", "java", "js", "python", "rust")] * 164
    weights = section_weights(subsets)
    assert sum(weights[:447]) == pytest.approx(984) == sum(weights[447:])
    assert section_weights(["math-prm", "other", "refusals-offensive"]) == [1, 0, 1]


def test_sections_and_the_score_by_hand(tokenizer):
    good, bad, texts, subsets = ("x", "y"), ("y", "x"), [], []
    for section, names in SECTIONS.items():
        for name in names:
            both = [good, bad] if section == "Safety" else [good, good]
            texts += [bad, good, bad] if name == "math-prm" else both
            subsets += [name] * (3 if name == "math-prm" else 2)
    summary = summary_of(tokenizer, pairs_of(*texts, subsets=subsets))
    found = {section: row["accuracy"] for section, row in summary["sections"].items()}
    expected = {"Chat": 1, "Chat Hard": 1, "Safety": 0.5, "Reasoning": (1 / 3 + 1) / 2}
    assert found == pytest.approx(expected)
    assert summary["reward_bench"] == pytest.approx(np.mean(list(expected.values())))
    assert summary["subsets"]["math-prm"]["accuracy"] == pytest.approx(1 / 3)

    kept = [index for index, name in enumerate(subsets) if name != "mt-bench-easy"]
    partly = pairs_of(*(texts[index] for index in kept), subsets=[subsets[index] for index in kept])
    summary = summary_of(tokenizer, partly)
    assert summary["sections"]["Chat"]["missing"] == ["mt-bench-easy"]
    assert summary["reward_bench"] is None, "a score over other subsets would be another score"


def test_subsets_of_another_benchmark_have_no_sections(tokenizer):
    summary = summary_of(tokenizer, pairs_of(("x", "y"), ("y", "x"), subsets=["mine", "yours"]))
    assert summary["subsets"]["mine"]["accuracy"] == 1
    assert "sections" not in summary and "reward_bench" not in summary


def test_texts_of_a_benchmark_are_turns_where_there_is_a_chat_template(tokenizer):
    assert as_turns(tokenizer, ["q"], ["a"]) == (
        [[{"role": "user", "content": "q"}]],
        [[{"role": "assistant", "content": "a"}]],
    )
    assert as_turns(tokenizer, ["q"], ["a"], turns=False) == (["q"], ["a"])
    assert as_turns(tokenizer, None, ["a"]) == (None, ["a"]), "without a prompt, the text holds it"
    pairs = pairs_of(("x", "y"), turns=True)
    seen = []
    model = CountsLetters(tokenizer)
    model.score_ids = lambda responses: seen.extend(responses) or np.zeros(len(responses))
    score_pairs(model, pairs)
    assert tokenizer.decode(seen[0]) == "<user>p: <user>x"


def test_the_picture_has_what_was_measured(tokenizer, tmp_path):
    pairs = pairs_of(("xx", "x"), ("y", "x"), ("x", "x"), ("xy", "ab"))
    models = {"mine": summary_of(tokenizer, pairs)}
    plot_reward_models({"models": models}, tmp_path / "by_length.png")
    strong = pairs_of(("xx", "x"), ("y", "x"), strength=np.array([0.0, 1]))
    curve = {"n": 1, "gold": 0.5, "ci_low": 0, "ci_high": 1, "oracle": 0.5, "gain": {"value": 0, "low": 0, "high": 0}}
    evaluation = {
        "models": {"mine": summary_of(tokenizer, strong)},
        "best_of_n": {"models": {"mine": {"rows": [curve]}}},
    }
    plot_reward_models(evaluation, tmp_path / "all.png")
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("by_length.png", "all.png"))
    with pytest.raises(ValueError, match="no pair and no response was scored"):
        plot_reward_models({}, tmp_path / "nothing.png")
