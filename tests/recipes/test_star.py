"""`metatune star`: a round's phases and files, going on after a kill, and what is refused."""

import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from metatune.eval import evaluate
from metatune.eval.engines import load_engine
from metatune.eval.forced import ForcedAnswers
from metatune.recipes import cli, rounds, star, star_round
from metatune.recipes.adapters import STARTER
from metatune.recipes.config import ConfigError
from metatune.recipes.star_sampler import Sampler, success_rate

from .launches import LIMIT, finish, last_line, metatune, start, succeed, write_recipe

STAR = {
    "model_name_or_path": "starter",
    "dtype": "float32",
    "distributions": [
        {"name": "sums", "source": "arithmetic", "config": {"terms": 6}, "train_size": 30, "test_size": 4},
        {"name": "search", "source": "countdown", "config": {"numbers": 2}, "train_size": 10, "test_size": 2},
    ],
    "rounds": 1,
    "num_prompts": 12,
    "num_samples": 4,
    "episodes": {"by": "delimiter"},
    "num_forced_answers": 4,
    "forced_answer_tokens": 8,
    "max_completion_length": 64,
    "max_length": 128,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 4,
    "learning_rate": 1.0e-4,
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def trained(monkeypatch):
    """Replace the fine-tuning by a copy of its model; returns the recipes and launcher's options it was given."""
    calls = []

    def launch(recipe, parser, args):
        script_args, training_args, model_args = parser.parse_args_and_config(args[:2])
        recipe.check(script_args, training_args, model_args)
        calls.append(SimpleNamespace(script=script_args, training=training_args, model=model_args, launch=args[2:]))
        from transformers import AutoModelForCausalLM, AutoTokenizer

        source = STARTER if model_args.model_name_or_path == "starter" else model_args.model_name_or_path
        AutoModelForCausalLM.from_pretrained(source).save_pretrained(training_args.output_dir)
        AutoTokenizer.from_pretrained(source).save_pretrained(training_args.output_dir)
        return 0

    monkeypatch.setattr(rounds, "launch", launch)
    return calls


@pytest.fixture
def sampled(monkeypatch):
    """Count what is asked of the models."""
    calls = []
    for name in ("sample", "measure"):
        method = getattr(Sampler, name)

        def counted(self, *args, name=name, method=method):
            calls.append(name)
            return method(self, *args)

        monkeypatch.setattr(Sampler, name, counted)
    return calls


def run(tmp_path, *options, **values):
    recipe = write_recipe(tmp_path / "star.yaml", STAR, output_dir=str(tmp_path / "run"), **values)
    return cli.main(["star", "--config", str(recipe), *options])


# A round and its files


def test_null_reaches_the_fine_tuning(tmp_path, trained):
    assert run(tmp_path, max_length=None, select="correct") == 0
    assert trained[0].training.max_length is None  # its default would cut traces


def test_a_round_keeps_the_right_trace_of_least_regret(tmp_path, trained, capsys):
    assert run(tmp_path, "--num_processes", "2") == 0
    folder = tmp_path / "run" / "round-1"
    samples, traces = rows(folder / "samples.jsonl"), rows(folder / "traces.jsonl")
    assert len(samples) == 48
    right = {(row["problem"], row["sample"]) for row in samples if row["right"]}
    assert {(trace["problem"], trace["sample"]) for trace in traces} == right
    starts = json.loads((folder / "forced.json").read_text())["success_at_once"]
    for trace in traces:
        assert len(trace["values"]) == len(trace["episodes"]) + 1 == len(trace["ends"]) + 1
        assert trace["values"][0] == starts[trace["problem"]], "one estimate of J_0 a problem"
        assert trace["values"][-1] == 1.0 and trace["step"] == 1 and trace["correct"] is True
        of_problem = [other for other in traces if other["problem"] == trace["problem"]]
        if trace["kept"]:
            assert trace["regret"] == min(other["regret"] for other in of_problem)
        assert sum(other["kept"] for other in of_problem) == 1

    kept = {(trace["problem"], trace["sample"]) for trace in traces if trace["kept"]}
    (call,) = trained
    assert call.launch == ["--num_processes", "2"]
    assert call.model.model_name_or_path == "starter" and call.training.learning_rate == 1e-4
    trained_on = rows(folder / "kept" / "train.jsonl")
    for row, sample in zip(
        trained_on, [row for row in samples if (row["problem"], row["sample"]) in kept], strict=True
    ):
        assert row["input_ids"] == sample["prompt_ids"] + sample["ids"], "the ids that were sampled"
        assert row["labels"] == [-100] * len(sample["prompt_ids"]) + sample["ids"]

    summary = json.loads((folder / "summary.json").read_text())
    assert summary["problems"] == 12 and summary["right"] == len(right) / 48
    assert summary["kept"] == len(kept) / 12
    assert summary["progress"] == pytest.approx(summary["right"] - summary["success_at_once"])
    assert summary["regret_kept"] <= summary["regret"]
    printed = capsys.readouterr().out
    assert "J_0" in printed and f"Saved to {folder / 'model'}" in printed


def test_rounds_draw_other_problems_and_sample_from_the_last_model(tmp_path, trained, sampled):
    assert run(tmp_path, rounds=2, select="correct", num_samples=2) == 0
    first, second = (tmp_path / "run" / f"round-{number}" for number in (1, 2))
    keys = [{row["key"] for row in rows(folder / "samples.jsonl")} for folder in (first, second)]
    assert keys[0] != keys[1]
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (first, second)]
    assert summaries[1]["sampled_from"] == str(first / "model")
    assert [call.model.model_name_or_path for call in trained] == ["starter", "starter"], "STaR begins anew"
    assert sampled == ["sample", "sample"], "any right trace will do, so nothing is measured"
    assert summaries[0]["forced_tokens"] == 0 and summaries[0]["success_at_once"] is None


def test_start_from_last_goes_on_from_the_last_model(tmp_path, trained):
    assert run(tmp_path, rounds=2, select="shortest", num_samples=2, start_from="last") == 0
    assert trained[1].model.model_name_or_path == str(tmp_path / "run" / "round-1" / "model")


def test_both_ways_of_choosing_keep_one_trace_of_the_same_problems(tmp_path, trained):
    kept = {}
    for select in ("progress", "correct"):
        (tmp_path / select).mkdir()
        assert run(tmp_path / select, select=select) == 0
        kept[select] = rows(tmp_path / select / "run" / "round-1" / "kept" / "train.jsonl")
    assert len(kept["progress"]) == len(kept["correct"]) > 0
    samples = [rows(tmp_path / select / "run" / "round-1" / "samples.jsonl") for select in kept]
    assert samples[0] == samples[1], "they differ in the choice alone"


# Worked values


class Scripted:
    """An engine that writes given traces, and right answers on given shares of the forced ones."""

    def __init__(self, tokenizer, traces, shares):
        self.tokenizer, self.traces, self.shares = tokenizer, traces, shares
        self.eos_token_ids = frozenset({tokenizer.eos_token_id})

    def generate(self, prompt_ids, sampling):
        texts, seen = [], {}
        for ids in prompt_ids:
            text = self.tokenizer.decode(ids)
            count = seen[text] = seen.get(text, 0) + 1
            if not text.endswith("answer "):
                texts.append(self.traces[(count - 1) % len(self.traces)])
            else:
                prefix = text.split("<|assistant|>")[1].removesuffix("answer ")
                texts.append("6<|end|>" if count <= 4 * self.shares[prefix] else "7<|end|>")
        return [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


@pytest.fixture
def sampler():
    """A sampler of the starter with four samples and four forced answers, whose engine a test replaces."""
    args = star.StarScriptArguments(
        distributions=[{}], num_samples=3, num_forced_answers=4, episodes={"by": "delimiter"}, max_completion_length=64
    )
    training_args = SimpleNamespace(use_cpu=True, max_length=None, chat_template_path=None)
    model_args = SimpleNamespace(model_revision="main", dtype="float32", attn_implementation=None)
    return Sampler(str(STARTER), args, training_args, model_args)


PROBLEM = {
    "prompt": [{"role": "user", "content": "compute 1+2+3"}],
    "answer": "6",
    "distribution": "sums",
    "verifier": "exact",
    "info": "{}",
    "key": "1+2+3",
}


def test_values_along_a_trace_by_hand(sampler):
    whole, direct, cut = "1+2=3\n3+3=6\nanswer 6<|end|>", "answer 6<|end|>", "1+2=3\nanswer 6"
    shares = {"": 0.25, "1+2=3\n": 0.5, "1+2=3\n3+3=6\n": 1.0}
    sampler.engine = Scripted(sampler.tokenizer, [whole, direct, cut], shares)
    samples = sampler.sample([PROBLEM], seed=0)
    assert [row["correct"] for row in samples] == [True, True, True]
    assert [row["right"] for row in samples] == [True, True, False], "what was cut off did not end right"
    (start,), traces, tokens = sampler.measure({0: PROBLEM}, [row for row in samples if row["right"]], seed=0)
    assert start == 0.25
    assert [trace["values"] for trace in traces] == [[0.25, 0.5, 1.0, 1.0], [0.25, 1.0]]
    assert traces[0]["episodes"] == ["1+2=3\n", "3+3=6\n", "answer 6<|end|>"]
    assert traces[0]["regret"] == pytest.approx(
        sum(
            (end - begin) * (1 - height)
            for begin, end, height in zip([0, *traces[0]["ends"]], traces[0]["ends"], [0.375, 0.75, 1.0], strict=False)
        )
    )
    assert tokens == 3 * 4 * 2, "three distinct prefixes, four answers of two tokens: J_0 is measured once"


def test_answers_without_a_verdict_count_for_nothing(monkeypatch):
    verdicts = {"a": True, "b": False, "c": None}
    verifier = SimpleNamespace(score=lambda text, answer, info: verdicts[text])
    monkeypatch.setattr("metatune.recipes.star_sampler.get_verifier", lambda name: verifier)

    def rate(*texts):
        return success_rate(PROBLEM, ForcedAnswers(texts=list(texts), suffix_tokens=1, answer_tokens=[1] * len(texts)))

    assert rate("a", "b", "b", "c") == pytest.approx(1 / 3)
    assert rate("c", "c") is None


# Going on


def test_a_finished_phase_is_not_repeated(tmp_path, trained, sampled, monkeypatch):
    """Stopped after each phase in turn, a run ends as if it had never been stopped."""
    assert run(tmp_path) == 0
    folder = tmp_path / "run" / "round-1"
    expected = {name: (folder / name).read_bytes() for name in ("samples.jsonl", "traces.jsonl", "kept/train.jsonl")}
    (tmp_path / "stopped").mkdir()
    sampled.clear()
    trained.clear()

    def stopping_before(owner, name):
        def stop(*args, **kwargs):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, stop)
            assert run(tmp_path / "stopped", resume_from_checkpoint=True) == 130
        done = list(sampled)
        sampled.clear()
        return done

    assert stopping_before(star_round.Round, "_force") == ["sample"]
    assert stopping_before(star_round.Round, "_fine_tune") == ["measure"]
    assert stopping_before(rounds, "launch") == []
    assert trained == []
    assert stopping_before(star_round.Round, "_summarise") == []
    assert len(trained) == 1
    assert run(tmp_path / "stopped", resume_from_checkpoint=True) == 0
    assert sampled == [] and len(trained) == 1
    folder = tmp_path / "stopped" / "run" / "round-1"
    assert {name: (folder / name).read_bytes() for name in expected} == expected


def test_a_run_may_be_made_longer_but_not_another_one(tmp_path, trained, sampled, capsys):
    assert run(tmp_path, select="correct") == 0
    assert run(tmp_path, select="correct") == 2
    assert "holds a run already" in capsys.readouterr().err
    assert run(tmp_path, select="correct", num_samples=5, resume_from_checkpoint=True) == 2
    assert "num_samples is not what the run" in capsys.readouterr().err
    assert run(tmp_path, select="correct", rounds=2, resume_from_checkpoint=True) == 0
    assert sampled == ["sample", "sample"] and len(trained) == 2


def test_a_run_that_never_sampled_can_be_mended(tmp_path, trained, capsys):
    assert run(tmp_path, max_length=70) == 2
    assert "max_length (70) would cut traces" in capsys.readouterr().err
    assert run(tmp_path) == 0


def test_a_failed_fine_tuning_ends_the_run_with_its_code(tmp_path, monkeypatch):
    monkeypatch.setattr(rounds, "launch", lambda *args: 3)
    with pytest.raises(SystemExit, match="3"):
        run(tmp_path, select="correct", num_samples=2)
    assert not (tmp_path / "run" / "round-1" / "model").exists()


# Mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"select": "best"}, "`select`: 'best' is not one of progress, shortest, correct"),
        ({"start_from": "first"}, "`start_from`: 'first' is not one of base, last"),
        ({"rounds": 0}, "`rounds` is 0; it must be at least 1"),
        ({"temperature": 0.0}, "greedy traces"),
        ({"episodes": {"by": "lines"}}, "by is one of phrases, delimiter, regex, tokens"),
        ({"episodes": {"delimitr": "\n"}}, "did you mean 'delimiter'"),
        ({"num_prompts": 1000}, "num_prompts is 1000, the distributions have 40 problems"),
        ({"forcing_suffix": " "}, "forcing_suffix is empty"),
        ({"forcing_suffix": "\\boxed{"}, "rejects a correct forced answer"),
        ({"eval_strategy": "steps"}, "no evaluation split"),
        ({"push_to_hub": True}, "push_to_hub would push the model of every round"),
        ({"resume_from_checkpoint": "somewhere"}, "resume_from_checkpoint is true or nothing"),
        ({"use_peft": True, "start_from": "last", "rounds": 2}, "use start_from: base"),
        ({"use_peft": True, "engine": "vllm", "rounds": 2}, "use another engine"),
        ({"max_completion_length": 600, "max_length": None}, "512 positions"),
        ({"num_sample": 3}, "unknown key 'num_sample'; did you mean 'num_samples'?"),
        ({"model_name_or_path": None}, "give the `model_name_or_path`"),
        ({"distributions": None}, "give the `distributions`"),
        ({"accelerate_config": "zero22"}, "no name 'zero22'; did you mean 'zero2'?"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, options, message):
    assert run(tmp_path, **options) == 2
    error = last_line(capsys.readouterr().err)
    assert error.startswith("metatune: error: ")
    assert message in error


def test_accelerate_launch_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(tmp_path) == 2
    assert "metatune star --num_processes 2" in capsys.readouterr().err


def test_nothing_right_is_nothing_to_train_on(tmp_path, trained, capsys):
    impossible = [{"name": "long", "source": "arithmetic", "config": {"terms": 20}, "train_size": 4, "test_size": 2}]
    assert run(tmp_path, distributions=impossible, num_prompts=4, max_completion_length=8) == 2
    assert "none of 16 traces ended right" in capsys.readouterr().err
    assert trained == []


# As users run it


@pytest.mark.slow
@pytest.mark.timeout(3 * LIMIT)
def test_a_round_in_two_processes_killed_and_gone_on_with_makes_a_better_model(tmp_path):
    from transformers import AutoTokenizer

    from metatune.curricula import load_distributions

    distributions = [
        {"name": "sums", "source": "arithmetic", "config": {"terms": 6}, "train_size": 400, "test_size": 60}
    ]
    values = {"distributions": distributions, "num_prompts": 200, "num_train_epochs": 3, "learning_rate": 5.0e-4}
    values |= {"output_dir": str(tmp_path / "run"), "per_device_train_batch_size": 8, "sampling_batch_size": 256}
    recipe = write_recipe(tmp_path / "star.yaml", STAR, **values)
    command = metatune("star", "--config", recipe, "--num_processes", "2")
    folder = tmp_path / "run" / "round-1"
    process = start(command)
    deadline = time.monotonic() + LIMIT
    while not (folder / "samples.jsonl").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1][-3000:]
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    sampled_at = (folder / "samples.jsonl").stat().st_mtime_ns
    output = succeed([*command, "--resume_from_checkpoint", "true"])
    assert "sampling 4 traces" not in output and (folder / "samples.jsonl").stat().st_mtime_ns == sampled_at

    losses = [row["loss"] for row in rows(folder / "model" / "metrics.jsonl") if "loss" in row]
    assert sum(losses[-5:]) < sum(losses[:5]), "the kept traces are learned"
    held_out = load_distributions(distributions)[0].test
    tokenizer = AutoTokenizer.from_pretrained(STARTER)
    before, after = (
        evaluate(
            load_engine("compact", str(model), tokenizer, dtype="float32", device="cpu"),
            tokenizer,
            held_out,
            num_samples=4,
            max_new_tokens=64,
        ).summary()["accuracy"]
        for model in (STARTER, folder / "model")
    )
    assert after > before + 0.08, (before, after)

    code, _, errors = finish(start(command))  # without being asked to, it goes on with nothing and overwrites nothing
    assert code == 2 and "holds a run already" in errors


@pytest.mark.parametrize("name", ["star_starter", "star_math_1gpu"])
def test_recipes_are_read_strictly(name):
    path = Path(star.__file__).parent / "mrt" / f"{name}.yaml"
    on_cpu = ["--bf16", "false", "--use_cpu", "true"]  # transformers refuses bf16 without a GPU
    configs = star.make_parser().parse_args_and_config(["--config", str(path), *on_cpu])
    star.check(*configs[:3])
    assert configs[3] == [] and f"metatune star --config recipes/mrt/{name}.yaml" in path.read_text()


def test_problems_without_a_verifier_are_refused(tmp_path):
    path = tmp_path / "essays.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Write of {i}."}) + "\n" for i in range(40)))
    args = star.StarScriptArguments(distributions=[{"name": "essays", "source": "dataset", "path": str(path)}])
    with pytest.raises(ConfigError, match="distribution 'essays' has no verifier"):
        star.load_problems(args)
