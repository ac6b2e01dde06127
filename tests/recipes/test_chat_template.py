"""Prompts are rendered outside of a trainer as inside of it, and data that a template cannot read is one line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import AutoTokenizer
from trl import GRPOConfig, ModelConfig

from metatune.curricula.tokenizer import CHAT_TEMPLATE
from metatune.eval import load_held_out
from metatune.eval.engines import CompactEngine
from metatune.recipes import cli, evaluate, grpo, reward, sft, star
from metatune.recipes.adapters import STARTER
from metatune.recipes.chat_template import check_chat, plain_template, recipe_of, record_column, recorded
from metatune.recipes.config import ConfigError
from metatune.recipes.metarm_policy import Policy
from metatune.recipes.star_sampler import Sampler
from metatune.rewards import Forcing
from metatune.rewards.rendering import Rendering
from metatune.trainers import DUMPTrainer

from ..rewards.tokenizers_of_kinds import MAKERS
from .launches import GRPO, REWARD, write_recipe
from .test_star import STAR

OFF = {"enable_thinking": False}
HYBRID = CHAT_TEMPLATE.replace(
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}",
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% if enable_thinking is false %}<think></think>{% endif %}",
)
PARTS = [{"role": "user", "content": [{"type": "text", "text": "1+1"}]}]


def starter_with(template: str | None, folder: Path) -> str:
    """Write the starter's files with another chat template, or without any."""
    folder.mkdir()
    for file in STARTER.iterdir():
        if file.name != "chat_template.jinja":
            (folder / file.name).symlink_to(file)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return str(folder)


def parsed(module, path: Path):
    return module.make_parser().parse_args_and_config(["--config", str(path)])


def write_rows(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def generated(monkeypatch) -> list[list[list[int]]]:
    """The token ids of the prompts that engines were given, in place of generating."""
    calls: list[list[list[int]]] = []

    def generate(self, prompt_ids, sampling):
        calls.append([list(ids) for ids in prompt_ids])
        return [[self.pad_token_id] for _ in prompt_ids]

    monkeypatch.setattr(CompactEngine, "generate", generate)
    return calls


@pytest.fixture
def trainers(monkeypatch) -> list[DUMPTrainer]:
    """The trainers that tokenized prompts."""
    found: list[DUMPTrainer] = []
    tokenize: Callable = DUMPTrainer._tokenize_prompts

    def spied(self, prompts):
        found.append(self)
        return tokenize(self, prompts)

    monkeypatch.setattr(DUMPTrainer, "_tokenize_prompts", spied)
    return found


def test_a_run_is_evaluated_on_the_token_ids_that_its_trainer_makes(tmp_path, trainers, generated, capsys):
    """Also a checkpoint of it, the same model by its recipe, and a benchmark with the run's system message."""
    model, run = starter_with(HYBRID, tmp_path / "model"), tmp_path / "run"
    entry = {**GRPO["distributions"][0], "system": "be right"}
    options = {"chat_template_kwargs": OFF, "max_steps": 1, "save_steps": 1, "compact_generation": False}
    options |= {"distributions": [entry], "output_dir": str(run), "model_name_or_path": model}
    grpo.main(*parsed(grpo, write_recipe(tmp_path / "grpo.yaml", GRPO, **options)))
    held_out = load_held_out([entry])
    expected = trainers[0]._tokenize_prompts([item["prompt"] for item in held_out])[0]
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert tokenizer.decode(expected[0]).endswith("<|assistant|><think></think>")
    assert expected[0] != Rendering(tokenizer).prompt_ids(held_out[0]["prompt"])

    recipe = str(run / "recipe.yaml")
    for arguments in (
        ["--model", str(run)],
        ["--model", str(run / "checkpoint-1")],
        ["--model", model, "--recipe", recipe],
    ):
        evaluate.main(*evaluate.make_parser().parse_args_and_config([*arguments, "--device", "cpu"]))
        assert generated.pop() == expected, arguments
        assert f"chat_template_kwargs {OFF}, as in {recipe}" in capsys.readouterr().out

    data = write_rows(tmp_path / "test.jsonl", {"question": "1+2", "answer": "#### 3"})
    arguments = [
        "--model",
        str(run),
        "--benchmark",
        "gsm8k",
        "--data",
        data,
        "--instruction",
        "",
        "--max_new_tokens",
        "8",
    ]
    evaluate.main(*evaluate.make_parser().parse_args_and_config([*arguments, "--device", "cpu"]))
    turns = [{"role": "system", "content": "be right"}, {"role": "user", "content": "1+2"}]
    assert generated.pop() == trainers[0]._tokenize_prompts([turns])[0]
    assert "and the system message 'be right'" in capsys.readouterr().out
    on = ["--system", "", "--chat_template_kwargs", '{"enable_thinking": true}']
    evaluate.main(*evaluate.make_parser().parse_args_and_config([*arguments, *on, "--device", "cpu"]))
    assert generated.pop() == [Rendering(tokenizer).prompt_ids(turns[1:])]


def test_star_and_metarm_sample_as_they_train(tmp_path, generated):
    model = starter_with(HYBRID, tmp_path / "model")
    expected = Rendering(AutoTokenizer.from_pretrained(model), OFF)
    recipe = write_recipe(
        tmp_path / "star.yaml",
        STAR,
        model_name_or_path=model,
        chat_template_kwargs=OFF,
        output_dir=str(tmp_path / "out"),
    )
    args, training_args, model_args, _ = parsed(star, recipe)
    problems = star.fitting_problems(star.load_problems(args), args, training_args, model_args)[:2]
    Sampler(model, args, training_args, model_args).sample(problems, seed=0)
    ids = [expected.prompt_ids(problem["prompt"]) for problem in problems]
    assert generated.pop() == [each for each in ids for _ in range(args.num_samples)]

    grpo_args = GRPOConfig(str(tmp_path / "out"), use_cpu=True, bf16=False, chat_template_kwargs=OFF)
    policy = Policy(model, args, grpo_args, ModelConfig(model, dtype="float32"))
    policy.respond([{"prompt": problems[0]["prompt"]}, {"prompt": "1+1"}], 1, seed=0)
    assert generated.pop() == [ids[0], expected.prompt_ids("1+1")]


def test_the_folder_of_a_loop_s_round_belongs_to_the_loop(tmp_path):
    (tmp_path / "round-2" / "policy").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "round-2" / "policy"):
        (folder / "recipe.yaml").write_text("grpo: {chat_template_kwargs: {enable_thinking: false}}\n")
    path = recipe_of(str(tmp_path / "round-2" / "policy"))
    assert path == tmp_path / "recipe.yaml"
    assert recorded(path).chat_template_kwargs == OFF


def test_a_run_on_rows_with_their_own_variables_records_them(tmp_path):
    (tmp_path / "recipe.yaml").write_text("dataset_name: rows.jsonl\n")
    record_column(Dataset.from_dict({"chat_template_kwargs": [OFF, OFF]}), tmp_path)
    assert recorded(tmp_path / "recipe.yaml").chat_template_kwargs == OFF
    record_column(Dataset.from_dict({"chat_template_kwargs": [OFF, {"enable_thinking": True}]}), tmp_path)
    with pytest.raises(ConfigError, match="was trained on rows with different chat_template_kwargs: specify the ones"):
        recorded(tmp_path / "recipe.yaml")


def test_a_forced_answer_closes_no_thinking_that_the_prompt_has_closed(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(starter_with(HYBRID, tmp_path / "model"))
    assert "</think>" in Forcing(tokenizer).text_after("1+1")
    assert Forcing(tokenizer, chat_template_kwargs=OFF).text_after("1+1") == "\n\nMy final answer: \\boxed{"


@pytest.mark.parametrize("kind", ["starter", "byte level", "sentencepiece", "with bos"])
def test_the_plain_template_gives_a_text_the_token_ids_that_trl_gives_it(kind):
    tokenizer = MAKERS["sentencepiece" if kind == "with bos" else kind]()
    if kind == "with bos":
        from tokenizers.processors import TemplateProcessing

        tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, bos_token="a", eos_token="</s>")
        tokenizer._tokenizer.post_processor = TemplateProcessing(
            "a $A", special_tokens=[("a", tokenizer.bos_token_id)]
        )
    text = "What is 1+1?\nThink."
    tokenizer.chat_template = plain_template(tokenizer)
    assert Rendering(tokenizer).prompt_ids([{"role": "user", "content": text}]) == tokenizer(text=text)["input_ids"]
    two = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    rendered = tokenizer.apply_chat_template(two, tokenize=False)
    assert rendered.endswith(f"S\n\nQA{tokenizer.eos_token}")


def test_a_base_model_without_a_template_is_refused_before_its_launch_and_trains_with_the_plain_one(
    tmp_path, trainers, capsys
):
    model = starter_with(None, tmp_path / "model")
    options = {"model_name_or_path": model, "output_dir": str(tmp_path / "run"), "max_steps": 1, "save_strategy": "no"}
    recipe = write_recipe(tmp_path / "grpo.yaml", GRPO, **options)
    assert cli.main(["grpo", "--config", str(recipe)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"chat_template_path: {model} has no chat template" in line and "write `plain` for a base model" in line

    grpo.main(*parsed(grpo, write_recipe(tmp_path / "grpo.yaml", GRPO, **options, chat_template_path="plain")))
    prompt = [{"role": "user", "content": "1+1"}]
    saved = Rendering(AutoTokenizer.from_pretrained(tmp_path / "run"))
    assert trainers[0]._tokenize_prompts([prompt])[0] == [saved.prompt_ids(prompt)] == [saved.prompt_ids("1+1")]


@pytest.mark.parametrize(
    ("content", "message"),
    [("{% if %}", "Expected an expression"), (None, "cannot be read"), ("", "is neither a .jinja file nor plain")],
)
def test_a_template_that_cannot_be_used_is_one_line(tmp_path, content, message):
    path = tmp_path / ("none.txt" if content == "" else "template.jinja")
    if content is not None:
        path.write_text(content)
    recipe = write_recipe(tmp_path / "grpo.yaml", GRPO, output_dir=str(tmp_path / "run"), chat_template_path=str(path))
    with pytest.raises(ConfigError, match=f"chat_template_path: .*{message}"):
        grpo.check(*parsed(grpo, recipe))


ROWS = {
    grpo: {"prompt": PARTS, "answer": "2", "distribution": "sums", "verifier": "exact", "info": ""},
    sft: {"messages": [*PARTS, {"role": "assistant", "content": [{"type": "text", "text": "2"}]}]},
    reward: {
        "prompt": PARTS,
        "chosen": PARTS,
        "rejected": [{"role": "user", "content": [{"type": "text", "text": "3"}]}],
    },
}


@pytest.mark.parametrize("command", ROWS, ids=lambda module: module.__name__.rpartition(".")[2])
def test_parts_and_images_that_a_text_model_cannot_read_are_one_line(tmp_path, command):
    values = {key: value for key, value in (GRPO if command is grpo else REWARD).items() if key != "distributions"}
    as_text = json.loads(json.dumps(ROWS[command]).replace('[{"type": "text", "text": "1+1"}]', '"1+1"'))
    for row, message in (
        (
            ROWS[command],
            r"row 1: '\w+' has in message 1 a list of parts, and the chat template of starter accepts only text",
        ),
        (as_text | {"images": ["a.png"]}, "the column 'images' holds images, and starter is a text model: remove"),
    ):
        name = write_rows(tmp_path / "train.jsonl", row, row | {"distribution": "other"})
        recipe = write_recipe(tmp_path / "recipe.yaml", values, dataset_name=name, output_dir=str(tmp_path / "run"))
        with pytest.raises(ConfigError, match=message):
            command.main(*parsed(command, recipe))
        with pytest.raises(ConfigError, match=message):  # in the launcher and in doctor
            command.check_data(*parsed(command, recipe), rows=1)


def test_a_template_that_reads_parts_and_rows_with_other_parts():
    tokenizer = MAKERS["starter"]()
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|end|>")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}"
        "{% else %}{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endif %}{% endfor %}"
    )
    check_chat(tokenizer, "mine", Dataset.from_dict({"prompt": [PARTS]}), ["prompt"], "rows")
    image = [{"role": "user", "content": [{"type": "image", "text": ""}]}]
    with pytest.raises(
        ConfigError, match="row 2: 'prompt' has in message 1 a part of type 'image', and mine is a text"
    ):
        check_chat(tokenizer, "mine", Dataset.from_dict({"prompt": [PARTS, image]}), ["prompt"], "rows")


def test_rows_of_grpo_have_no_variables_of_their_own(tmp_path):
    """TRL's GRPO trainer would not read them."""
    values = {key: value for key, value in GRPO.items() if key != "distributions"}
    row = {"prompt": [{"role": "user", "content": "1+1"}], "answer": "2", "distribution": "sums", "verifier": "exact"}
    name = write_rows(tmp_path / "train.jsonl", row | {"info": "", "chat_template_kwargs": OFF})
    recipe = write_recipe(tmp_path / "recipe.yaml", values, dataset_name=name, output_dir=str(tmp_path / "run"))
    with pytest.raises(
        ConfigError, match=r"row 1: 'chat_template_kwargs' is .* set chat_template_kwargs in the recipe"
    ):
        grpo.main(*parsed(grpo, recipe))


def test_sft_trains_with_the_plain_template(tmp_path):
    model = starter_with(None, tmp_path / "model")
    row = {"prompt": [{"role": "user", "content": "1+1"}], "completion": [{"role": "assistant", "content": "2"}]}
    name = write_rows(tmp_path / "train.jsonl", row, row)
    values = {**REWARD, "model_name_or_path": model, "max_steps": 1, "save_strategy": "no", "dataset_name": name}
    recipe = write_recipe(tmp_path / "r.yaml", values, output_dir=str(tmp_path / "run"), chat_template_path="plain")
    sft.main(*parsed(sft, recipe))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False) == "1+12<|end|>"
