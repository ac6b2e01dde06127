import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metatune.eval import Completion, Evaluation, compare


def completion(distribution="easy", key="p", sample=0, correct=True, tokens=10, extracted="7", **options):
    return Completion(
        distribution=distribution,
        key=key,
        sample=sample,
        prompt="3+4",
        reference="7",
        completion=f"so {extracted}",
        extracted=extracted,
        tokens=tokens,
        truncated=options.pop("truncated", False),
        correct=correct,
        **options,
    )


def evaluation_of(verdicts, **options):
    """`{distribution: {key: [verdict, …]}}` as an evaluation."""
    rows = [
        completion(distribution, key, sample, verdict, extracted="7" if verdict else "8")
        for distribution, problems in verdicts.items()
        for key, group in problems.items()
        for sample, verdict in enumerate(group)
    ]
    return Evaluation(rows, **options)


def test_summary_by_hand():
    evaluation = evaluation_of(
        {"easy": {"p": [True, True], "q": [True, False]}, "hard": {"p": [False, False], "r": [False, True]}},
        seconds=2.0,
    )
    summary = evaluation.summary()
    assert summary["distributions"]["easy"]["accuracy"] == 0.75
    assert summary["distributions"]["hard"]["accuracy"] == 0.25
    assert summary["accuracy"] == 0.5
    assert summary["pass@1"] == 0.5
    assert summary["pass@2"] == 0.75  # 1, 1 and 0, 1
    assert summary["maj@2"] == 0.5  # p: 1; q and r tie: 1/2 each; hard p: 0
    assert summary["num_problems"] == 4, "the same key in two distributions is two problems"
    assert summary["generated_tokens"] == 80
    assert summary["mean_tokens"] == 10
    assert 0 <= summary["ci_low"] < summary["accuracy"] < summary["ci_high"] <= 1


def test_the_mixture_weighs_distributions_equally_whatever_their_size():
    evaluation = evaluation_of({"easy": {str(i): [True] for i in range(30)}, "hard": {"p": [False]}})
    assert evaluation.summary()["accuracy"] == 0.5


def test_unscorable_completions_are_counted_and_left_out():
    evaluation = evaluation_of({"easy": {"p": [True, None], "q": [None, None], "r": [False, False]}})
    summary = evaluation.summary()
    assert summary["accuracy"] == 0.5, "p is 1 by its one scored sample, r is 0, q is out"
    assert summary["num_unscorable"] == 3
    assert summary["num_completions"] == 6
    assert summary["pass@2"] == 0.0, "only r has two scored completions"


def test_a_distribution_that_nothing_could_score_has_no_accuracy(caplog):
    evaluation = evaluation_of({"easy": {"p": [True]}, "broken": {"p": [None]}})
    summary = evaluation.summary()
    assert summary["accuracy"] == 1.0
    assert summary["distributions"]["broken"]["accuracy"] is None
    assert summary["distributions"]["broken"]["num_unscorable"] == 1
    assert "broken" in caplog.text
    nothing = evaluation_of({"broken": {"p": [None]}}).summary()
    assert nothing["accuracy"] is nothing["ci_low"] is None


def test_truncation_rate():
    rows = [completion(sample=i, truncated=i < 1) for i in range(4)]
    assert Evaluation(rows).summary()["truncation_rate"] == 0.25


def test_save_and_load_round_trip(tmp_path):
    evaluation = evaluation_of({"easy": {"p": [True, None]}}, settings={"temperature": 1.0}, seconds=1.5)
    evaluation.completions.append(completion(key="ü<&>", extracted=None, correct=False))
    summary = evaluation.save(tmp_path / "before")
    loaded = Evaluation.load(tmp_path / "before")
    assert loaded == evaluation
    assert json.loads((tmp_path / "before" / "summary.json").read_text()) == summary
    assert sorted(path.name for path in (tmp_path / "before").iterdir()) == ["completions.parquet", "summary.json"]


def test_loading_names_the_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"summary\.json: no such file"):
        Evaluation.load(tmp_path)
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "completions.parquet").write_text("not parquet")
    with pytest.raises(ValueError, match="not a saved evaluation"):
        Evaluation.load(tmp_path)


def test_compare_by_hand():
    before = evaluation_of({"easy": {"p": [True], "q": [False]}, "hard": {"p": [False], "q": [False]}}, seconds=1.0)
    after = evaluation_of({"easy": {"p": [True], "q": [True]}, "hard": {"p": [False], "q": [False]}}, seconds=3.0)
    result = compare(before, after)
    assert (result["accuracy_before"], result["accuracy_after"], result["difference"]) == (0.25, 0.5, 0.25)
    assert result["distributions"]["easy"]["difference"] == 0.5
    hard = result["distributions"]["hard"]
    unseen = 1 - 0.025 ** (1 / 2)  # the share of problems that change which two that do not rule out
    assert hard["difference"] == 0 and (hard["ci_low"], hard["ci_high"]) == pytest.approx((-unseen, unseen))
    assert result["seconds"] == 4.0
    assert result["generated_tokens"] == 80
    assert sum(part["generated_tokens"] for part in result["distributions"].values()) == 80
    assert sum(part["seconds"] for part in result["distributions"].values()) == pytest.approx(4.0)


def test_compare_pairs_what_both_sides_scored():
    before = evaluation_of({"easy": {"p": [True], "q": [None], "only before": [True]}})
    after = evaluation_of({"easy": {"p": [False], "q": [True]}})
    result = compare(before, after)
    assert result["num_problems"] == 1
    assert result["num_unpaired"] == 2
    assert result["difference"] == -1.0
    with pytest.raises(ValueError, match="no problem was scored both"):
        compare(evaluation_of({"easy": {"p": [None]}}), after)


@settings(deadline=None, max_examples=20)
@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "c"]),
        st.dictionaries(st.sampled_from("pqrs"), st.tuples(st.booleans(), st.booleans()), min_size=1),
        min_size=1,
    )
)
def test_compare_is_antisymmetric_and_zero_with_itself(verdicts):
    before = evaluation_of({d: {key: [pair[0]] for key, pair in ps.items()} for d, ps in verdicts.items()})
    after = evaluation_of({d: {key: [pair[1]] for key, pair in ps.items()} for d, ps in verdicts.items()})
    forth, back, none = compare(before, after), compare(after, before), compare(before, before)
    assert forth["difference"] == pytest.approx(-back["difference"])
    assert forth["difference"] == pytest.approx(forth["accuracy_after"] - forth["accuracy_before"])
    assert forth["ci_low"] <= forth["difference"] + 1e-12 and forth["difference"] - 1e-12 <= forth["ci_high"]
    assert none["difference"] == 0 and none["ci_low"] == pytest.approx(-none["ci_high"]) and none["ci_high"] > 0
