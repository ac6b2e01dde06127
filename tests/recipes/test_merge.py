import json
import shutil
import warnings
from contextlib import nullcontext

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from metatune.eval.engines import LOCAL_ENGINES, Sampling, load_engine
from metatune.recipes import cli, merge
from metatune.recipes.adapters import STARTER, base_and_adapter, base_of
from metatune.recipes.config import ConfigError

from .adapter_setup import save_adapter

PROMPTS = ["3+4-2=", "11-5=", "make 24 of 4 6 1"]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """The folder of an adapter and the model it was saved from."""
    folder = tmp_path_factory.mktemp("runs") / "lora"
    return folder, save_adapter(folder)


def prompt_ids(tokenizer) -> list[list[int]]:
    chats = [[{"role": "user", "content": text}] for text in PROMPTS]
    return [tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for chat in chats]


@torch.no_grad()
def logits(model, tokenizer) -> list[torch.Tensor]:
    return [model(input_ids=torch.tensor([ids])).logits.float() for ids in prompt_ids(tokenizer)]


def furthest(first: list[torch.Tensor], second: list[torch.Tensor]) -> float:
    return max((mine - theirs).abs().max().item() for mine, theirs in zip(first, second, strict=True))


# ---- metatune merge ----


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True, "r": 8}])
def test_the_merged_model_has_the_logits_of_base_and_adapter(tmp_path, options, capsys):
    model = save_adapter(tmp_path / "lora", **options)
    assert cli.main(["merge", "--model", str(tmp_path / "lora"), "--output_dir", str(tmp_path / "merged")]) == 0
    assert f"Saved to {tmp_path / 'merged'}" in capsys.readouterr().out
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    expected = logits(model, AutoTokenizer.from_pretrained(STARTER))
    assert furthest(logits(merged, tokenizer), expected) < 1e-5 * max(1, expected[0].abs().max().item())
    assert furthest(logits(AutoModelForCausalLM.from_pretrained(STARTER), tokenizer), expected) > 0.1
    files = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= files
    assert not any("adapter" in name or name.endswith(".bin") for name in files)
    with pytest.raises(ConfigError, match="it holds a whole model"):
        base_of(tmp_path / "merged")


EMBEDDINGS = ["embed_tokens", "lm_head"]  # one weight in the starter


@pytest.mark.parametrize(
    ("options", "stays_tied"),
    [
        ({"target_modules": ["q_proj", "embed_tokens"]}, False),
        ({"target_modules": ["q_proj", "lm_head"]}, False),
        ({"target_modules": ["q_proj", *EMBEDDINGS]}, False),
        ({"target_modules": ["q_proj", *EMBEDDINGS], "ensure_weight_tying": True}, True),
        ({"target_modules": ["q_proj", "embed_tokens"], "use_dora": True}, False),
        ({"modules_to_save": ["lm_head"]}, False),
        ({"modules_to_save": EMBEDDINGS}, False),
        ({"modules_to_save": EMBEDDINGS, "ensure_weight_tying": True}, True),
        ({"trainable_token_indices": [5, 6, 7]}, True),
        ({"target_modules": "all-linear"}, True),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings", "ignore:Setting `save_embedding_layers`")
def test_an_adapter_of_tied_embeddings_is_merged_into_each_of_them(tmp_path, options, stays_tied):
    assert AutoConfig.from_pretrained(STARTER).tie_word_embeddings
    model = save_adapter(tmp_path / "lora", **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*tie")  # what PEFT warns of has been dealt with
        merge.main(merge.MergeArguments(str(tmp_path / "lora"), str(tmp_path / "merged")))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.config.tie_word_embeddings == stays_tied
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert furthest(logits(merged, tokenizer), logits(model, tokenizer)) < 1e-4
    base, found = base_and_adapter(str(tmp_path / "lora"))  # as metatune eval loads it
    engine = load_engine("transformers", base.name, tokenizer, dtype="float32", device="cpu", adapter=found)
    assert furthest(logits(engine.model, tokenizer), logits(model, tokenizer)) < 1e-4


def test_a_reward_models_adapter_becomes_a_reward_model(tmp_path):
    model = save_adapter(tmp_path / "lora", task_type="SEQ_CLS")
    torch.manual_seed(1)  # the head that the merge starts from is another one
    merge.main(merge.MergeArguments(str(tmp_path / "lora"), str(tmp_path / "merged")))
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    scores = logits(merged, tokenizer)
    assert scores[0].shape == (1, 1)
    assert furthest(scores, logits(model, tokenizer)) < 1e-5


def test_another_dtype_is_rounded_once(adapter, tmp_path):
    folder, _ = adapter
    merged, _ = merge.merge(str(folder))
    merge.main(merge.MergeArguments(str(folder), str(tmp_path / "half"), dtype="bfloat16"))
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    assert half.dtype == torch.bfloat16
    for mine, theirs in zip(half.parameters(), merged.parameters(), strict=True):
        assert torch.equal(mine, theirs.to(torch.bfloat16))


@pytest.mark.parametrize(("std", "message"), [(2e-4, True), (0.05, False)])
def test_an_adapter_whose_change_rounding_removes_is_reported(tmp_path, capsys, std, message):
    """The base is already in bfloat16, so rounding removes changes below half of its spacing."""
    base = AutoModelForCausalLM.from_pretrained(STARTER, dtype=torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    save_adapter(tmp_path / "lora", std=std)
    path = tmp_path / "lora" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(tmp_path / "base")}))
    merge.merge(str(tmp_path / "lora"))
    printed = capsys.readouterr().out
    assert ("of what the adapter changes. Merge with --dtype float32" in printed) == message, printed
    merge.merge(str(tmp_path / "lora"), "float32")
    assert "Rounding" not in capsys.readouterr().out


def test_a_run_that_was_moved_still_finds_the_starter(adapter, tmp_path, monkeypatch):
    folder, model = adapter
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "starter"
    shutil.copytree(folder, tmp_path / "elsewhere" / "lora")
    monkeypatch.chdir(tmp_path)
    merged, tokenizer = merge.merge("elsewhere/lora")
    assert furthest(logits(merged, tokenizer), logits(model, tokenizer)) < 1e-4


def error_of(capsys, *options) -> str:
    assert cli.main(["merge", *map(str, options)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("metatune: error: ")
    return line


def test_mistakes_are_one_line_and_write_nothing(adapter, tmp_path, capsys):
    folder, _ = adapter
    output = ("--output_dir", tmp_path / "merged")
    assert "it holds no adapter" in error_of(capsys, "--model", tmp_path, *output)
    assert "it holds no adapter" in error_of(capsys, "--model", tmp_path / "nowhere", *output)
    assert "it holds a whole model" in error_of(capsys, "--model", STARTER, *output)
    assert "lora is not empty" in error_of(capsys, "--model", folder, "--output_dir", folder)
    assert "dtype" in error_of(capsys, "--model", folder, *output, "--dtype", "int8")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/no/such/folder", "its base model is missing, no such folder: /no/such/folder"),
        ("runs/base/final", "its base model is missing, no such folder: runs/base/final"),
        ("nobody/no-such-model", "its base model nobody/no-such-model cannot be loaded"),
        (None, "base_model_name_or_path is empty"),
    ],
)
def test_a_base_that_is_missing_is_named_with_the_mend(adapter, tmp_path, capsys, monkeypatch, name, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    shutil.copytree(adapter[0], tmp_path / "lora")
    path = tmp_path / "lora" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": name}))
    line = error_of(capsys, "--model", tmp_path / "lora", "--output_dir", tmp_path / "merged")
    assert message in line
    assert not (tmp_path / "merged").exists()


# ---- metatune eval ----


@pytest.mark.parametrize("name", LOCAL_ENGINES)
def test_every_engine_of_this_process_loads_an_adapter(adapter, name):
    folder, model = adapter
    tokenizer = AutoTokenizer.from_pretrained(folder)
    base, found = base_and_adapter(str(folder))
    engine = load_engine(name, base.name, tokenizer, dtype="float32", device="cpu", adapter=found)
    greedy = Sampling(max_new_tokens=12, temperature=0.0)
    completions = engine.generate(prompt_ids(tokenizer), greedy)
    assert completions == LOCAL_ENGINES["transformers"](model, tokenizer).generate(prompt_ids(tokenizer), greedy)
    plain = load_engine(name, str(STARTER), tokenizer, dtype="float32", device="cpu")
    assert completions != plain.generate(prompt_ids(tokenizer), greedy), "the adapter changes what is said"


def test_an_evaluation_takes_the_folder_of_a_lora_run(adapter, tmp_path, capsys):
    recipe = tmp_path / "eval.yaml"
    entry = "{name: sum, source: arithmetic, config: {terms: 3}, train_size: 8, test_size: 4}"
    recipe.write_text(f"distributions: [{entry}]\nmax_new_tokens: 16\ndevice: cpu\n")
    assert cli.main(["eval", "--model", str(adapter[0]), "--config", str(recipe)]) == 0
    assert "sum" in capsys.readouterr().out
    assert cli.main(["eval", "--model", str(adapter[0]), "--config", str(recipe), "--engine", "vllm"]) == 2
    assert "merge it first with metatune merge" in capsys.readouterr().err


# ---- vLLM's rollouts ----


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"target_modules": ["q_proj", "embed_tokens"]}, "model.embed_tokens"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
        ({"modules_to_save": ["lm_head"]}, "lm_head"),
        ({"trainable_token_indices": [5]}, "model.embed_tokens"),
        ({"modules_to_save": ["norm"]}, None),
        ({"target_modules": "all-linear"}, None),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings", "ignore:Setting `save_embedding_layers`")
@pytest.mark.needs("vllm")
def test_vllm_has_one_weight_for_tied_embeddings_and_takes_no_adapter_of_either(tmp_path, options, refused):
    from metatune.trainers.vllm_rollouts import refuse_tied_adapters

    model = save_adapter(tmp_path / "lora", **options)
    with pytest.raises(ValueError, match=f"use_vllm: the adapter changes {refused}") if refused else nullcontext():
        refuse_tied_adapters(model)
