"""Random recipes and data for `metatune`: a small recipe that works, with some of it changed."""

import datetime
import enum
import json
import types
import typing
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

# Options that do what they say outside of this process and folder, or take minutes to start.
LEFT_ALONE = {
    *("push_to_hub", "use_vllm", "torch_compile", "report_to", "deepspeed", "fsdp", "debug", "output_dir"),
    *("model_name_or_path", "trust_remote_code", "hub_model_id", "max_steps", "dataset_streaming", "env"),
    *("use_transformers_continuous_batching", "use_transformers_paged"),
}
# Options of which a large value is no mistake but a long run.
SMALL = {
    *("gradient_accumulation_steps", "max_completion_length", "per_device_train_batch_size", "num_generations"),
    *("steps_per_generation", "num_forced_answers", "forced_answer_tokens", "num_train_epochs", "demonstrations"),
    *("generation_batch_size", "num_iterations", "per_device_eval_batch_size", "num_generations_eval", "max_length"),
    *("dataset_num_proc", "dataloader_num_workers", "pad_to_multiple_of", "lora_r", "num_prototypes"),
    *("per_device_meta_batch_size", "num_processes", "max_tool_calling_iterations", "dataloader_prefetch_factor"),
    "contrastive_queue_size",
}
TOGETHER = {  # options that act on one another: half of all changes are made here
    "grpo": """num_generations steps_per_generation num_iterations beta per_device_train_batch_size curriculum
        generation_batch_size progress curriculum_options curriculum_reward judge reward_models meta_judge use_peft
        reward_funcs reward_weights gradient_accumulation_steps eval_strategy loss_type scale_rewards gold_reward
        distributions length_grouping compact_generation budgets episodes terminating_generations save_strategy
        success_estimator""",
    "sft": """packing padding_free completion_only_loss assistant_only_loss length_buckets init_config tokenizer
        max_length use_peft dataset_train_split eval_strategy distributions chat_template_path loss_type eos_token""",
    "reward": """flip soft_labels adaptive_margin posterior_labels pair_weights contrastive contrastive_on meta_step
        meta_step_size num_prototypes use_peft max_length eval_strategy dataset_train_split save_strategy""",
}
CHOICES = {
    "progress": ("episode", "prefix", "anytime", "length_penalty"),
    "curriculum": ("uniform", "easy_to_hard", "pools", "sec", "dump", "dump_plus"),
    "curriculum_reward": ("gold", "total"),
    "loss_type": ("grpo", "dr_grpo", "bnpo", "dapo", "nll", "dft"),
    "contrastive": ("simcse", "swav"),
    "meta_step": ("plain", "normalised"),
    "reward_funcs": (["correctness"], ["think_format_reward"], ["accuracy_reward"], ["json.dumps"], ["nowhere.f"]),
    "eval_strategy": ("steps", "epoch"),
    "curriculum_options": ({"temperature": 0}, {"window": -1}, {"floor": 2.0}, {"nonsense": 1}, {"count": "prompts"}),
    "judge": ({"url": "http://127.0.0.1:9", "rubric": "x"}, {"rubric": 1}, {"url": "x", "weight": -1}, {}),
    "reward_models": ([{"path": "nowhere"}], [{"url": 3}], [{}], [None], []),
    "init_config": ({"model_type": "llama"}, {"model_type": "nothing"}, {"model_type": None}, "{", "3"),
    "episodes": ({"by": "delimiter"}, {"by": "tokens", "tokens": 0}, {"by": 3}, "{"),
}
ENTRY_VALUES = (
    None,
    "",
    0,
    -1,
    1,
    "x",
    [],
    {},
    {"terms": 0},
    {"terms": 10**6},
    {"terms": "x"},
    True,
    1e308,
    "dataset",
)
ENTRY_KEYS = ("name", "source", "config", "train_size", "test_size", "seed", "system", "verifier", "path", "nonsense")
WRONG = (None, True, "", "x", -1, 1e308, [], {}, [None], [[1]], {"a": 1}, 10**30, b"ab", datetime.date(2001, 1, 1))
TEXTS = (
    "",
    "x",
    "\u00e9\u202e\n\u65e5\u672c",
    "a\nb",
    "none",
    "true",
    "1",
    "steps",
    "no",
    "auto",
    "./no/where",
    "\x85",
)
NUMBERS = (0.0, -1.0, 0.5, 1.0, 2.0, 1e-30, 1e10, 1e308, float("nan"), float("inf"), float("-inf"))

UNREADABLE = (
    "a: &a {b: *a}",
    "a: 2001-99-99",
    "a: !!int x",
    "[" * 5000,
    "? [a]\n: b",
    "? {a: b}\n: c",
    "? *a",
    "\ud800",
)

COMMON = {
    **{"model_name_or_path": "../tiny", "dtype": "float32", "output_dir": "run", "use_cpu": True, "bf16": False},
    **{"max_steps": 1, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "gradient_checkpointing": False},
    **{"logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True},
}
SUMS = {"name": "sums", "source": "arithmetic", "config": {"terms": 2}, "train_size": 8, "test_size": 2}
QUESTIONS = {"name": "questions", "source": "dataset", "path": "data.jsonl", "verifier": "exact"}


def message(role: str, content: Any) -> list[dict]:
    """A conversation of one message."""
    return [{"role": role, "content": str(content)}]


RECIPES = {
    "grpo": {**COMMON, "num_generations": 2, "max_completion_length": 8, "distributions": [SUMS, QUESTIONS]},
    "sft": {**COMMON, "dataset_name": "data.jsonl", "max_length": 64},
    "reward": {**COMMON, "dataset_name": "data.jsonl", "max_length": 64},
    "star": {**COMMON, "distributions": [SUMS]},
    "metarm": {"output_dir": "run", "rounds": 1},
    "eval": {"model": "../tiny", "distributions": [SUMS], "output_dir": "run"},
}
ROWS = {
    "grpo": [{"prompt": f"{i} + {i}", "answer": str(2 * i), "distribution": "ab"[i % 2]} for i in range(8)],
    "sft": [{"prompt": message("user", i), "completion": message("assistant", 2 * i)} for i in range(8)],
    "reward": [
        {"prompt": message("user", i), "chosen": message("assistant", i), "rejected": message("assistant", i + 1)}
        for i in range(8)
    ],
}
REWARD = b"def f(completions, **kwargs):\n    return [float(i) for i in range(len(completions))]\n"
CELLS = (
    *(None, "", " ", 0, 1.5, True, [], {}, [[]], ["a"], [None], [1, 2], {"a": 1}, -(10**25), "x" * 5000, "\ufeff"),
    *("\U0001f600 \u202e\0 \u00df", message("user", "hi"), [{"role": "user"}], [{"role": 3, "content": None}]),
    *([{"role": "user", "content": [{"type": "text", "text": "t"}]}], [{"content": "x"}], "```\n"),
)
COLUMNS = (
    *("prompt", "images", "tools", "chosen", "text", "messages", "completion", "margin", "strength", "weight"),
    *("input_ids", "labels", "completions", "distribution", "chat_template_kwargs", "verifier", "info"),
)


@dataclass(repr=False)
class Case:
    """A command, its recipe as text, and the files beside it; prints as what reproduces it."""

    command: str
    recipe: str
    files: dict[str, bytes]

    def write(self, folder: Path) -> None:
        """Write the recipe and its files into a new folder."""
        for name, content in {"recipe.yaml": self.recipe.encode("utf-8", "surrogatepass"), **self.files}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

    def __repr__(self) -> str:
        files = "\n".join(f"---- {name}\n{content[:1500]!r}" for name, content in self.files.items())
        return f"metatune {self.command} --config recipe.yaml\n---- recipe.yaml\n{self.recipe}\n{files}\n"


def of_type(name: str, hint: Any) -> st.SearchStrategy:
    """Values of an annotation, those at its edges."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return st.one_of([of_type(name, argument) for argument in arguments])
    if hint is types.NoneType:
        return st.none()
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return st.sampled_from([member.value for member in hint])
    if hint is bool:
        return st.booleans()
    if hint is int:
        return st.sampled_from((0, -1, 1, 2, 3, 5, 7) if name in SMALL else (0, -1, 1, 2, 7, 10**9, 2**63, 10**30))
    if hint is float:
        return st.sampled_from(NUMBERS[:5] if name in SMALL else NUMBERS)
    if list in (hint, origin):
        return st.lists(of_type(name, arguments[0] if arguments else str), max_size=3)
    if dict in (hint, origin):
        return st.dictionaries(st.sampled_from(("a", "dtype", "window")), st.sampled_from((1, "x", None)), max_size=2)
    return st.sampled_from(TEXTS) | st.text(max_size=4)


@st.composite
def recipes(draw, command: str) -> str:
    """The YAML of a recipe with up to three options changed, now and then broken as a text."""
    module = import_module(f"metatune.recipes.{'evaluate' if command == 'eval' else command}")
    hints = {name: hint for name, hint in module.make_parser().hints.items() if name not in LEFT_ALONE}
    together = [name for name in TOGETHER.get(command, "").split() if name in hints] or sorted(hints)
    values = json.loads(json.dumps(RECIPES[command]))
    if command == "grpo" and draw(st.integers(0, 2)) == 0:
        del values["distributions"]
        values |= {"dataset_name": draw(st.sampled_from(("data.jsonl", "folder"))), "reward_funcs": ["fuzz_reward.f"]}
    for _ in range(draw(st.integers(0, 3))):
        name = draw(st.sampled_from(together) | st.sampled_from(sorted(hints)))
        options = [of_type(name, hints[name]), of_type(name, hints[name]), st.sampled_from(WRONG)]
        if name in CHOICES:
            options += [st.sampled_from(CHOICES[name])] * 3
        if name == "distributions":
            entry = st.tuples(st.sampled_from(ENTRY_KEYS), st.sampled_from(ENTRY_VALUES))
            options += [entry.map(lambda change: [{**SUMS, change[0]: change[1]}])] * 4
        values[name] = draw(st.one_of(options))
    if draw(st.integers(0, 15)) == 0:
        name = draw(st.sampled_from(sorted(values)))
        values[draw(st.sampled_from((name[1:], name + "s", name.upper(), "x y", "\u00e9")))] = values[name]
    text = yaml.safe_dump(values, allow_unicode=True)
    if draw(st.integers(0, 9)) == 0:
        place = draw(st.integers(0, len(text)))
        piece = draw(
            st.sampled_from(("\t", ":", "'", "{", "\0", "- ", "&a ", "*a", "\n\n", "!!python/name:os ", "\ufeff"))
        )
        broken = (
            text[:place] + piece + text[place:],
            text[:place],
            f"{text}{text.splitlines()[0]}\n",
            f"- {text}",
            "",
        )
        text = draw(
            st.sampled_from((*broken, f"%YAML 3\n{text}", json.dumps(values, default=str), "&a [*a]", *UNREADABLE))
        )
    return text


@st.composite
def data(draw, command: str) -> bytes:
    """The bytes of a JSONL file: good rows, with a value, a column or the file itself changed."""
    rows = json.loads(json.dumps(ROWS[command]))
    columns, cell = list(rows[0]), draw(st.sampled_from(CELLS) | st.text(max_size=6))
    change = draw(st.sampled_from(("none", "none", "none", "value", "drop", "column", "lost", "one", "extra", "raw")))
    column = draw(st.sampled_from(COLUMNS if change == "extra" else columns))
    changed = [rows[draw(st.integers(0, len(rows) - 1))]] if change in ("value", "drop") else rows
    for row in changed:
        if change in ("value", "column", "extra"):
            row[column] = cell
        elif change in ("drop", "lost"):
            row.pop(column)
    text = "".join(json.dumps(row) + "\n" for row in (rows[:1] if change == "one" else rows))
    good = text.encode()
    if change != "raw":
        return good
    damaged = (b"", b"\n\n", b"\xef\xbb\xbf" + good, good[:-9], text.encode("utf-16"), good.replace(b"\n", b"\r\n"))
    odd = (b"null\n", b"3\n", b"{}\n", b"[1,2]", b"[]", json.dumps(rows).encode(), b"[" * 9000, b"\xff\xfe\0PAR1")
    broken = (good.replace(b"}\n", b"}\n{bro", 3), text.replace("1", "\u00e9").encode("latin-1"), good + b"\n" + good)
    return draw(st.sampled_from((*damaged, *odd, *broken)) | st.binary(max_size=99))


@st.composite
def cases(draw, command: str) -> Case:
    """A recipe, its data, and the same data as a folder with or without a split to test on."""
    if command not in ROWS:
        return Case(command, draw(recipes(command)), {})
    content = draw(data(command))
    files = {"data.jsonl": content, "folder/train.jsonl": content}
    if draw(st.booleans()):
        files["folder/test.jsonl"] = content
    if command == "grpo":
        files["fuzz_reward.py"] = REWARD
    return Case(command, draw(recipes(command)), files)
