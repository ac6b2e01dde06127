"""The chat template of a run: the recipe's options, the checks of the data, and the record in the run's folder.

`chat_template_path` of a recipe is a `.jinja` file, or `plain` for a base model: the texts of the turns, separated by
empty lines. The template is saved with the model's tokenizer.
`chat_template_kwargs` are its variables, such as `enable_thinking: false`. `metatune eval` finds both, and the system
message, in the folder of the run that it evaluates ([`recorded`]).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..curricula.hub_access import hub_answers
from .adapters import folder_of
from .config import ConfigError, MissingHereError, read_recipe
from .data import CONVERSATION, MESSAGES, kind_of
from .hub import find_model

PLAIN = "plain"
RECORD = "chat_template_kwargs.json"  # in the folder of a run whose data has the column
IMAGES = ("image", "images")


@dataclass(frozen=True)
class Recorded:
    """The chat template options of a run's prompts.

    Args:
        path (`str`): the recipe that records them.
        chat_template_kwargs (`dict`): variables of the chat template; empty for none.
        system (`str`, *optional*): the system message of all its distributions; `None` if they differ or have none.
        template (`str`, *optional*): the `chat_template_path`.
    """

    path: str
    chat_template_kwargs: dict[str, Any]
    system: str | None
    template: str | None


def read_template_kwargs(value: Any, option: str = "chat_template_kwargs") -> dict[str, Any] | None:
    """Return variables of a chat template, given as a mapping or as JSON; raises `ValueError` for anything else."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError(f"`{option}` is {value!r}, not JSON: write '{{\"enable_thinking\": false}}'") from None
    if not isinstance(value, dict | type(None)) or not all(isinstance(key, str) for key in value or ()):
        raise ValueError(f"`{option}` is a mapping of the template's variables, such as {{enable_thinking: false}}")
    return value


def recipe_of(model: str) -> Path | None:
    """Return the recipe of the run that produced a model's folder, `None` if there is none.

    For a checkpoint, and for a round's model of `metatune star` or `metarm`, it is the recipe of the run.
    """
    folder = Path(model)
    folders = [folder]
    if folder.name.startswith("checkpoint-"):
        folders.append(folder.parent)
    elif folder.parent.name.startswith("round-"):
        folders.insert(0, folder.parent.parent)
    return next((path for path in (each / "recipe.yaml" for each in folders) if path.is_file()), None)


def recorded(path: str | Path) -> Recorded:
    """Read the chat template options of a run from its recipe; for `metatune metarm`, from its block `grpo`.

    Raises [`ConfigError`] for a recipe that cannot be read, and for a run whose rows have different options.
    """
    recipe, column = read_recipe(str(path)), Path(path).with_name(RECORD)
    values = recipe.values
    block = values["grpo"] if isinstance(values.get("grpo"), Mapping) else values
    try:
        kwargs = read_template_kwargs(block.get("chat_template_kwargs"))
    except ValueError as error:
        raise recipe.error("chat_template_kwargs", str(error)) from error
    if kwargs is None and column.is_file():
        kwargs = json.loads(column.read_text())
        if kwargs is None:
            raise ConfigError(
                f"{column.parent} was trained on rows with different chat_template_kwargs: specify the ones for "
                "the evaluation, for instance --chat_template_kwargs '{\"enable_thinking\": false}'"
            )
    entries = values.get("distributions")
    entries = [entry for entry in entries if isinstance(entry, Mapping)] if isinstance(entries, list) else []
    systems = {entry.get("system") for entry in entries}
    system = systems.pop() if len(systems) == 1 else None
    template = block.get("chat_template_path")
    return Recorded(
        str(path),
        kwargs or {},
        system if isinstance(system, str) else None,
        template if isinstance(template, str) else None,
    )


def record_column(dataset: Any, output_dir: str | Path) -> None:
    """Save the value of the column `chat_template_kwargs` in a run's folder, or null if it has several values."""
    from metatune.eval.files import write_json

    if getattr(dataset, "num_rows", None) is None or "chat_template_kwargs" not in dataset.column_names:
        return
    texts = {json.dumps(value, sort_keys=True) for value in dataset["chat_template_kwargs"]}
    write_json(Path(output_dir) / RECORD, json.loads(texts.pop()) if len(texts) == 1 else None)


def load_processor(model: str, revision: str | None, template: str | None, **options: Any) -> Any:
    """Load a model's tokenizer (or processor) as TRL's trainers do, with the chat template that a recipe names.

    Raises [`ConfigError`] for a template that cannot be read; `OSError` or `ValueError` if there is no tokenizer.
    """
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(model, revision=revision, **options)
    set_template(processor, template)
    return processor


def is_own_template(template: str | None) -> bool:
    """Return whether a `chat_template_path` is a file or `plain`, and not a model whose template TRL copies."""
    return template == PLAIN or Path(template or "").suffix in (".jinja", ".j2")


def set_template(processor: Any, template: str | None) -> None:
    """Set a tokenizer's chat template to a `.jinja` file or to `plain`; `None` keeps its own.

    Raises [`ConfigError`] for a file that cannot be read or is not a template.
    """
    if template is None:
        return
    if template == PLAIN:
        processor.chat_template = plain_template(getattr(processor, "tokenizer", processor))
        return
    if not is_own_template(template):
        raise ConfigError(f"chat_template_path: '{template}' is neither a .jinja file nor {PLAIN}")
    try:
        processor.chat_template = Path(template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"chat_template_path: {template}: cannot be read: {error}") from error
    try:
        processor.apply_chat_template([{"role": "user", "content": "1+1"}], tokenize=False)
    except Exception as error:  # jinja2's and whatever a template raises
        raise ConfigError(f"chat_template_path: {template}: {' '.join(str(error).split())}") from error


def plain_template(tokenizer: Any) -> str:
    """Return a template without role tags: a user turn has the token ids of its text; an answer ends with EOS."""
    ids = tokenizer("a")["input_ids"]
    begins = tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
    return (
        ("{{ bos_token }}" if begins else "")
        + "{% for message in messages %}{{ message['content'] }}"
        + "{% if message['role'] == 'assistant' %}{{ eos_token }}"
        + "{% elif not loop.last and loop.nextitem['role'] != 'assistant' %}{{ '\\n\\n' }}{% endif %}"
        + "{% endfor %}"
    )


def check_template(model: str, revision: str | None, template: str | None) -> None:
    """Raise [`ConfigError`] unless conversations can be rendered; a model that is not on this machine passes."""
    processor = _processor_here(model, revision, template)
    if processor is not None:
        need_template(processor, model)


def _processor_here(model: str, revision: str | None, template: str | None) -> Any:
    """Load a model's tokenizer; `None` if it does not exist, which `find_models` reports.

    Look for the model first, because transformers requests one file after another from an unreachable hub.
    """
    try:
        find_model(model, "model_name_or_path", revision)
    except MissingHereError:
        return None
    try:
        return load_processor(model, revision, template, local_files_only=not hub_answers())
    except ConfigError:
        raise
    except (OSError, ValueError):
        return None


def need_template(processor: Any, model: str) -> None:
    """Raise [`ConfigError`] if a tokenizer has no chat template."""
    if not processor.chat_template:
        raise ConfigError(
            f"chat_template_path: {model} has no chat template, and the prompts are conversations: write `plain` for "
            "a base model (the text of the turns, nothing else), or the path of a .jinja file"
        )


def processor_for(parts: Mapping[str, Any], training_args: Any, model_args: Any, tokenizer: Any = None) -> Any:
    """Return the tokenizer for TRL's SFT or reward trainer; `None` lets the trainer load the model's.

    Args:
        parts (`Mapping[str, datasets.Dataset]`): the training and evaluation rows, by their names in errors.
        training_args ([`~trl.SFTConfig`] or [`~trl.RewardConfig`]): `chat_template_path` is read. `plain` is set here,
            because TRL's trainer would read it as a model.
        model_args ([`~trl.ModelConfig`]): the model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): tokenizer of a model with random weights.

    Raises [`ConfigError`] for rows that the model or its chat template cannot read.
    """
    template = training_args.chat_template_path
    if template is not None and not is_own_template(template):  # a model, whose template and tokens TRL copies
        return tokenizer
    processor = tokenizer
    if processor is None:
        processor = load_processor(folder_of(model_args.model_name_or_path), model_args.model_revision, template)
    elif template == PLAIN:
        set_template(processor, template)
    for where, dataset in parts.items():
        columns = [column for column in MESSAGES if column in (dataset.column_names or ())]
        check_chat(processor, str(model_args.model_name_or_path or "the tokenizer"), dataset, columns, where)
    if template != PLAIN:
        return tokenizer
    training_args.chat_template_path = None
    return processor


def check_readable(parts: Mapping[str, Any], template: str | None, model_args: Any) -> None:
    """Raise [`ConfigError`] for rows that the model or its chat template cannot read; see [`check_chat`].

    A model that is not on this machine passes, and so does a template that TRL copies from a model.

    Args:
        parts (`Mapping[str, datasets.Dataset]`): rows, by their names in errors.
        template (`str`, *optional*): the recipe's `chat_template_path`.
        model_args ([`~trl.ModelConfig`]): the model.
    """
    name = model_args.model_name_or_path
    if name is None or (template is not None and not is_own_template(template)):
        return
    processor = _processor_here(folder_of(name), model_args.model_revision, template)
    if processor is None:
        return
    for where, dataset in parts.items():
        columns = [column for column in MESSAGES if column in (dataset.column_names or ())]
        check_chat(processor, str(name), dataset, columns, where)


def check_chat(processor: Any, model: str, dataset: Any, columns: list[str], where: str) -> None:
    """Raise [`ConfigError`] for rows that a text model or its chat template cannot read: images, lists of parts.

    Args:
        processor ([`~transformers.PreTrainedTokenizerBase`] or [`~transformers.ProcessorMixin`]): the model's.
        model (`str`): its name in errors.
        dataset (`datasets.Dataset`): rows that [`~metatune.recipes.data.check_messages`] has checked.
        columns (`list[str]`): its columns of texts or conversations.
        where (`str`): the name of the rows in errors.
    """
    from transformers import ProcessorMixin

    if getattr(dataset, "num_rows", None) is None or isinstance(processor, ProcessorMixin):
        return
    for column in IMAGES:
        if column in dataset.column_names:
            raise ConfigError(
                f"{where}: the column '{column}' holds images, and {model} is a text model: remove the column, or "
                "train a vision-language model"
            )
    reads_parts: bool | None = None
    for column in [name for name in columns if name in MESSAGES]:
        for row, value in enumerate(dataset[column][:], start=1):
            if kind_of(value)[0] != CONVERSATION:
                break
            if row == 1:
                need_template(processor, model)
            place = next((n for n, message in enumerate(value, 1) if isinstance(message.get("content"), list)), None)
            if place is None:
                continue
            kinds = [part.get("type") for part in value[place - 1]["content"] if isinstance(part, Mapping)]
            reads_parts = _reads_parts(processor) if reads_parts is None else reads_parts
            other = next((kind for kind in kinds if kind != "text"), None)
            if other is None and reads_parts:
                continue
            what = f"a part of type '{other}', and {model} is a text model"
            what = what if other else f"a list of parts, and the chat template of {model} accepts only text"
            raise ConfigError(
                f"{where}: row {row}: '{column}' has in message {place} {what}: write the content as one text"
            )


def _reads_parts(processor: Any) -> bool:
    """Return whether a chat template renders a list with one text part like the text."""

    def rendered(content: Any) -> str:
        return processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)

    try:
        return rendered([{"type": "text", "text": "1+1"}]) == rendered("1+1")
    except Exception:  # jinja2's and whatever a template raises
        return False
