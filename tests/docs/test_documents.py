"""What the documents show is true of the code: recipes have no option that is not there, and links lead somewhere.

A ```yaml block is a recipe, a part of one, or a rubric; what is neither has another name on its fence.
"""

import ast
import re
import textwrap
import unicodedata
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from metatune.curricula import make_curriculum
from metatune.curricula.distributions import _entries
from metatune.recipes.config import EXPECTED_PROCESSES, Recipe, read_recipe
from metatune.recipes.reward_functions import load_reward
from metatune.rewards.episodes import EpisodeRule
from metatune.rewards.rubric import read_rubric

ROOT = Path(__file__).parents[2]
RUBRIC = ROOT / "docs" / "examples" / "own_rubric.yaml"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
COMMANDS = ("grpo", "sft", "reward", "evaluate", "star", "metarm", "strength")
FENCE = re.compile(r"^( *)(`{3,}|~{3,}) *([\w-]*)[^\n]*\n(.*?)^ *\2 *$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?)\[((?:[^][]|\[[^][]*\])*)\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")
DEFINITION = re.compile(r"^ {0,3}\[[^]]+\]: *(\S+)", re.MULTILINE)
ATTRIBUTE = re.compile(r"<(?:a|img|source)\b[^>]*?\b(?:href|src)=\"([^\"]+)\"")
# What makes a part of a GRPO recipe a whole one that any machine can read.
WHOLE = {"model_name_or_path": "starter", "output_dir": "runs/shown", "use_cpu": True, "bf16": False}
DATA = [{"name": "sums", "source": "arithmetic"}]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def yaml_blocks() -> list:
    """List each ```yaml block of the documents as a parameter: its text, named by its file and line."""
    found = []
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        for fence in FENCE.finditer(text):
            if fence[3] in ("yaml", "yml"):
                line = text.count("\n", 0, fence.start()) + 1
                found.append(pytest.param(textwrap.dedent(fence[4]), id=f"{name_of(path)}:{line}"))
    return found


def check_part(command: str, recipe: Recipe) -> None:
    """Raise for an option that the command does not have, or a value of another type."""
    import_module(f"metatune.recipes.{command}").make_parser().check_recipe(recipe)
    if command == "metarm":  # its blocks are recipes themselves
        for block in {"reward", "grpo"} & recipe.values.keys():
            check_part(block, Recipe(f"{recipe.path}, {block}", recipe.values[block], {}, {}))
    if "distributions" in recipe.values:
        _entries(recipe.values["distributions"], "distributions")  # the whole of `load_distributions` downloads


def check_whole(values: dict) -> None:
    """Raise as `metatune grpo` would before its launch; what only the reader's machine has is replaced."""
    grpo, own = import_module("metatune.recipes.grpo"), values.get("imports")
    values = {**WHOLE, **({} if "dataset_name" in values else {"distributions": DATA}), **values, "imports": None}
    values |= {key: WHOLE[key] for key in ("use_cpu", "bf16")}
    for name in ("judge", "held_out_judge"):
        if "rubric" in (values.get(name) or {}):
            values[name] = {**values[name], "rubric": str(RUBRIC)}
    script_args, training_args, model_args = grpo.make_parser().parse_recipe(Recipe("as shown", values, {}, {}))
    grpo.check(script_args, training_args, model_args)
    # The rest is read after the data, or when the trainer is built, which needs the model.
    for name in script_args.reward_funcs or []:
        if "." not in name:  # else it is of a module of the reader's own
            load_reward(name)
    EpisodeRule.from_options(training_args.episodes)
    if not own:
        make_curriculum(training_args.curriculum, ["sums"], **{"seed": 0, **(training_args.curriculum_options or {})})


@pytest.mark.parametrize("text", yaml_blocks())
def test_a_recipe_in_a_document_has_only_options_that_are_there(text, tmp_path, monkeypatch):
    monkeypatch.setenv(EXPECTED_PROCESSES, "1")  # else `num_processes` would be set for the tests that follow
    path = tmp_path / "shown.yaml"
    path.write_text(text, encoding="utf-8")
    monkeypatch.chdir(ROOT / "docs" / "examples")  # where modules of the reader's own are looked for
    recipe = read_recipe(str(path))
    if {"task", "items"} <= recipe.values.keys():
        read_rubric(path)
        return
    hints = {name: import_module(f"metatune.recipes.{name}").make_parser().hints for name in COMMANDS}
    command = max(COMMANDS, key=lambda name: len(hints[name].keys() & recipe.values.keys()))
    check_part(command, recipe)
    if command == "grpo":
        for judge in ("judge", "meta_judge", "held_out_judge"):
            if variable := recipe.values.get(judge, {}).get("api_key_variable"):
                monkeypatch.setenv(variable, "the reader's")
        check_whole(recipe.values)


def test_a_mistake_is_seen_at_every_depth():
    shown = {"curriculum": "dump", "judge": {"url": "http://127.0.0.1:8001/v1", "rubric": "r.yaml"}, "meta_every": 0}
    check_whole(shown)
    with pytest.raises(ValueError, match="unknown key 'curiculum'"):
        check_part("grpo", Recipe("x", {"curiculum": "dump"}, {}, {}))
    with pytest.raises(ValueError, match="diggits"):
        check_part("grpo", Recipe("x", {"distributions": [{**DATA[0], "diggits": 2}]}, {}, {}))
    with pytest.raises(ValueError, match="temprature"):
        check_whole({"curriculum": "dump", "curriculum_options": {"temprature": 0.1}})
    with pytest.raises(ValueError, match="delimitter"):
        check_whole({"progress": "episode", "episodes": {"by": "delimitter"}})
    with pytest.raises(ValueError, match="rubrik"):
        check_whole({**shown, "judge": {**shown["judge"], "rubrik": "r.yaml"}})


def prose(path: Path) -> str:
    """Return a document without its code, where brackets are no links."""
    return re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "code", FENCE.sub("", path.read_text(encoding="utf-8")))


def heading_ids(path: Path) -> set[str]:
    """Return the anchors of a document: as the site makes them for a page in docs, as GitHub does for others."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    ids, site = set(), path.is_relative_to(ROOT / "docs")
    for heading in re.findall(r"^#{1,6} +(.+?)(?: +#+)? *$", text, re.MULTILINE):
        if given := re.search(r"\{ *#([\w.-]+)[^}]*\}$", heading):
            ids.add(given[1])
            continue
        words = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "").lower()
        if site:
            words = unicodedata.normalize("NFKD", words).encode("ascii", "ignore").decode()
        words = re.sub(r"[^\w\s-]", "", words).strip()
        slug = re.sub(r"[-\s]+", "-", words) if site else re.sub(r"\s", "-", words)
        again = (slug + ("_" if site else "-") + str(number) for number in range(1, 100))
        ids.add(slug if slug not in ids else next(other for other in again if other not in ids))
    return ids | set(re.findall(r"\bid=\"([^\"]+)\"", text)) | set(re.findall(r"^::: *(\S+)", text, re.MULTILINE))


def broken(path: Path, target: str) -> str | None:
    """Return what is wrong with a relative link, `None` if nothing is."""
    place, _, anchor = target.partition("#")
    found = (path.parent / place).resolve() if place else path
    if not found.is_relative_to(ROOT) or not found.exists():
        return f"{target}: no such file"
    if anchor and found.suffix == ".md" and anchor not in heading_ids(found):
        return f"{target}: no such heading"
    return None


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere_and_pictures_are_described(path):
    text = prose(path)
    links = LINK.findall(text)
    targets = [target for *_, target in links] + DEFINITION.findall(text) + ATTRIBUTE.findall(text)
    mistakes = [broken(path, target) for target in targets if not re.match(r"\w+:|//", target)]
    mistakes += [
        f"{target}: has no words for who cannot see it" for mark, words, target in links if mark and not words
    ]
    assert [mistake for mistake in mistakes if mistake] == []


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "images").iterdir()), ids=name_of)
def test_a_picture_is_one(path):
    if path.suffix == ".png":
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    else:
        assert path.suffix == ".svg" and "<svg" in path.read_text(encoding="utf-8")


def test_documents_are_read_as_a_renderer_reads_them(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "page.md"
    page.write_text(
        "# One, `two` & three\n## [Four](x.md) {#own}\n## One two three\n```yaml\n# no heading\n```\n"
        '`[no](link.md)` [![picture](no.png)](#own) <img src="gone.png">\n::: metatune.trainers.MRTTrainer\n'
    )
    other = tmp_path / "other.md"
    other.write_text("# One, `two` & three\n# One, `two` & three\n")
    assert heading_ids(page) == {"one-two-three", "own", "one-two-three_1", "metatune.trainers.MRTTrainer"}
    assert heading_ids(other) == {"one-two--three", "one-two--three-1"}
    assert broken(page, "#own") is None and broken(page, "../other.md#one-two--three") is None
    assert broken(page, "#four") == "#four: no such heading" and broken(page, "gone.md") == "gone.md: no such file"
    assert "no.png" in prose(page) and "link.md" not in prose(page)


def test_every_page_is_in_the_table_of_contents():
    class Loader(yaml.SafeLoader):
        """Reads mkdocs' own tags as nothing."""

    Loader.add_multi_constructor("", lambda loader, suffix, node: None)
    nav = (ROOT / "mkdocs.yml").read_text()
    listed = set(re.findall(r"[\w/]+\.md", str(yaml.load(nav, Loader)["nav"])))
    assert listed == {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}


def test_the_public_api_is_listed_in_one_place():
    listed = re.findall(r"^::: metatune\.(\w+)\.(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    public = []
    for package in ("curricula", "eval", "recipes", "rewards", "trainers"):
        tree = ast.parse((ROOT / package / "__init__.py").read_text())
        for node in tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                public += [(package, each) for each in ast.literal_eval(node.value)]
    assert sorted(listed) == sorted(public)
