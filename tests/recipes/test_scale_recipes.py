"""The recipes for GPUs and the cluster guide: strictly parsed, their arms loaded, their memory as doctor says.

None of them has been run on a GPU; these tests hold what can be held without one.
"""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from transformers import AutoConfig

from metatune.curricula import load_distributions
from metatune.recipes import cli, rubric
from metatune.recipes.config import read_recipe
from metatune.recipes.doctor import diagnose, make_parser
from metatune.recipes.examine import parse, parser_for
from metatune.recipes.launch import separate
from metatune.recipes.target import launch_of, paired

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
DUMP = ("gsm8k", "knights_knaves", "math_1gpu", "math_1node", "math_2nodes")
MPO = ("essay", "summary", "ethics", "math")
SCALE = (*(f"dump/{name}" for name in DUMP), "mrt/r1_1node", *(f"mpo/{name}" for name in MPO))
GUIDE = ROOT / "docs" / "clusters.md"

# published shapes of Qwen2.5-1.5B and -7B
SHARED = {"num_hidden_layers": 28, "max_position_embeddings": 32768, "dtype": "bfloat16"}
SMALL = {"hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12, "num_key_value_heads": 2}
LARGE = {"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4}
SHAPES = {
    "1.5B": {**SHARED, **SMALL, "vocab_size": 151936, "tie_word_embeddings": True},
    "7B": {**SHARED, **LARGE, "vocab_size": 152064, "tie_word_embeddings": False},
    "R1-Distill-Qwen-1.5B": {**SHARED, **SMALL, "vocab_size": 151936, "tie_word_embeddings": False},
}


def path(name):
    return ROOT / "recipes" / f"{name}.yaml"


def header(name):
    """Return the comment that a recipe opens with."""
    lines = path(name).read_text().splitlines()
    return "\n".join(line for line in lines[: lines.index("")])


def commands(text):
    """Return every command line of a text as words: in a guide's code, or in a recipe's opening comment."""
    fenced = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    spans = [
        " ".join(span.split())
        for span in re.findall(r"`(metatune \w[^`]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    ]
    code = "\n".join([*fenced, *spans]) if fenced else text
    joined = re.sub(r"\\\n\s*(# +)?", " ", code)
    found = re.findall(r"(?<![\w'])(?:metatune|torchrun|accelerate launch) .*", joined)
    return [shlex.split(re.sub(r" &$|'$", "", line.rstrip())) for line in found]


@pytest.mark.parametrize("name", SCALE)
def test_the_header_s_memory_is_what_doctor_says(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)  # rubrics are named from the repository's root
    recipe = read_recipe(str(path(name)))
    size = re.search(r"(R1-.*|1\.5B|7B)(-|$)", recipe.values["model_name_or_path"])[1]
    AutoConfig.for_model("qwen2", **SHAPES[size]).save_pretrained(tmp_path)
    (line,) = [words for words in commands(header(name)) if words[1] == "doctor" and "--gpus" in words]
    assert line[line.index("--config") + 1] == f"recipes/{name}.yaml"
    line[line.index("--config") + 1] = str(path(name))
    args, options = make_parser().parse_args_and_config([*line[2:], "--model", str(tmp_path)])
    found = diagnose(args, options.recipe_args)["recipe"]
    assert found["problems"] == [] and found["fits"] and found["ready"]
    published = {"1.5B": 1.54, "7B": 7.62, "R1-Distill-Qwen-1.5B": 1.78}
    assert round(found["model"]["parameters"] / 1e9, 2) == published[size]
    needed, available, _ = re.search(r"Memory: ([\d.]+) GiB of (\d+) (a GPU)", header(name)).groups()
    assert f"{found['needed'] / 2**30:.1f}" == needed and found["available"] == int(available) * 2**30
    assert "Minutes: not run. Expect: not measured." in header(name)


@pytest.mark.parametrize("name", SCALE)
def test_recipes_leave_room_on_a_gpu(name):
    """Nine tenths of the GPU at most: context, buffers and fragmentation are not in the formulas."""
    needed, available = re.search(r"Memory: ([\d.]+) GiB of (\d+) a GPU", header(name)).groups()
    assert float(needed) <= 0.9 * float(available)


@pytest.mark.parametrize("name", ["math_1gpu", "math_1node", "math_2nodes"])
@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data (gsm8k, math500)")
def test_arms_load_from_local_data(name, tmp_path):
    """GSM8K as it is; MATH by level, from the 500 problems at hand, 400 of them as its training split."""
    rows = (DATA / "math500" / "test.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "train.jsonl").write_text("".join(rows[:400]))
    (tmp_path / "test.jsonl").write_text("".join(rows[400:]))
    entries = read_recipe(str(path(f"dump/{name}"))).values["distributions"]
    local = {"openai/gsm8k": DATA / "gsm8k", "nlile/hendrycks-MATH-benchmark": tmp_path}
    entries = [{**entry, "path": str(local[entry["path"]])} for entry in entries]
    for entry in entries:
        entry.pop("subset", None)
    loaded = {distribution.name: distribution for distribution in load_distributions(entries)}
    assert list(loaded) == ["gsm8k", "math-1", "math-2", "math-3", "math-4", "math-5"]
    assert len(loaded["gsm8k"].train) > 7000 and len(loaded["gsm8k"].test) > 1300
    levels = [json.loads(row)["level"] for row in rows[400:]]
    assert [len(loaded[f"math-{level}"].test) for level in range(1, 6)] == [levels.count(i) for i in range(1, 6)]
    assert loaded["math-5"].train[0]["prompt"][0]["content"].endswith("\\boxed{}.")


@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data (knights_knaves)")
def test_knights_and_knaves_load_from_local_data():
    (entry,) = read_recipe(str(path("dump/knights_knaves"))).values["distributions"]
    entry["path"] = str(DATA / "knights_knaves")
    entry.pop("subset")
    assert [d.name for d in load_distributions([entry])] == ["people-people3", "people-people4", "people-people5"]


def named_files(text):
    return set(re.findall(r"\b(?:recipes|docs)/[\w/.-]+\.(?:py|yaml|md)\b", text)) - {"recipes/dump/FILE.yaml"}


TEXTS = {"clusters.md": GUIDE.read_text(), **{name: header(name) for name in SCALE}}


@pytest.mark.parametrize("name", TEXTS)
def test_files_and_commands_that_are_named_exist(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = TEXTS[name]
    missing = [file for file in named_files(text) if not (ROOT / file).is_file()]
    assert missing == []
    lines = commands(text)
    assert len(lines) >= (15 if name == "clusters.md" else 2)
    for words in lines:
        check_line(words)


def check_line(words):
    """Assert that a command line names an existing command, recipe and options, with values of their types."""
    if words[0] == "metatune":
        command, args = words[1], words[2:]
        assert command in cli.COMMANDS, words
        if command == "vllm-serve":  # its other options are vLLM's
            assert read_recipe(args[args.index("--config") + 1]).values["vllm_mode"] == "server"
            return
        if command == "doctor":
            make_parser().parse_args_and_config(args)
            return
        if command == "rubric":
            rubric.make_parser().parse_args(args)
            return
    else:
        scripts = [i for i, word in enumerate(words) if word.endswith(".py")]
        assert len(scripts) == 1, words
        command, args = Path(words[scripts[0]]).stem, words[scripts[0] + 1 :]
        launcher = [word for word in words[: scripts[0]] if word.startswith("--")]
        known = torchrun_options() if words[0] == "torchrun" else accelerate_options()
        assert [option for option in launcher if option.split("=")[0] not in known] == [], words
    parser = parser_for(command, 1)
    recipe_args, launch_args = separate(args, parser)  # raises for an option that neither knows
    parser.check_recipe(read_recipe(recipe_args[recipe_args.index("--config") + 1]))
    options = paired(launch_args)
    processes = launch_of(None, None, parser.launch_values | options, gpus=1).processes
    if words[0] == "torchrun":
        given = paired(words[1 : scripts[0]])
        processes = int(given["nproc_per_node"]) * int(given.get("nnodes", 1))
    configs, _, problems, _ = parse(command, recipe_args, processes, told=True, elsewhere=True)
    assert configs is not None and problems == [], (words, problems)
    sizes = {"gsm8k": 128, "math_1gpu": 1024, "mrt_math": 256, **{f"mpo_{name}": 64 for name in MPO}}
    completions = sizes.get(Path(configs[1].output_dir).name, 2048)
    assert configs[1].generation_batch_size == completions, words  # however many processes, a recipe keeps its batch


def test_the_guide_s_scripts_are_shell():
    scripts = re.findall(r"```bash\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert len(scripts) == 3
    for script in scripts:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True, timeout=20)


def torchrun_options():
    from torch.distributed.run import get_args_parser

    return get_args_parser()._option_string_actions


def accelerate_options():
    from accelerate.commands.launch import launch_command_parser

    return launch_command_parser()._option_string_actions
