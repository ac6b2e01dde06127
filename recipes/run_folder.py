"""What every training recipe does around its trainer: the model's options, the run's folder, resuming, the end."""

import json
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, fields
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch.distributed as dist
import yaml
from transformers import Trainer, TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig
from trl import ModelConfig

from metatune.recipes.adapters import folder_of, is_adapter
from metatune.recipes.callbacks import StopAfterStep
from metatune.recipes.config import ConfigError, MissingHereError
from metatune.recipes.data import is_path, nearest_path, need_path
from metatune.recipes.folder_lock import hold_folder
from metatune.recipes.kept_recipe import NAME, KeepsRecipe, describe, differences, fixed, read_kept, without
from metatune.recipes.sharding import ShardingReport
from metatune.recipes.stopping import STOPPER, reports
from metatune.trainers.whole_checkpoints import MARK, has_mark, last_whole_checkpoint

RESUME_FILES = (  # what a checkpoint holds beside the model
    *("optimizer.*", "scheduler.*", "scaler.*", "rng_state*", "trainer_state.json"),
    *("metatune_state.json", "rollouts_*", "latest", "zero_to_fp32.py"),
)


def model_to_load(model_args: ModelConfig) -> str:
    """Return the folder or hub name of the model to train."""
    return folder_of(model_args.model_name_or_path)


def model_init_kwargs(training_args: TrainingArguments, model_args: ModelConfig) -> dict[str, Any]:
    """Return the options for `from_pretrained`: those of `model_args` beneath the recipe's `model_init_kwargs`."""
    return {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }


def settle_max_length(training_args: TrainingArguments, model_args: ModelConfig) -> list[str]:
    """Lower `max_length` to the model's positions; returns a line that says so, if it did."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model_to_load(model_args), revision=model_args.model_revision)
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    given = training_args.max_length
    if positions is None or (given is not None and given <= positions):
        return []
    training_args.max_length = positions
    return [f"max_length is {positions}, the model's positions, in place of {given}"]


def effective_recipe(*configs) -> str:
    """Write the options that differ from their defaults as a recipe, wherever they came from, but for secrets."""
    derived = {"generation_batch_size", "model_init_kwargs", "trust_remote_code"}  # settled from other options
    values = {}
    for config in configs:
        derived |= getattr(config, "derived_options", set())
        for option in fields(config):
            value = getattr(config, option.name, None)
            default = option.default_factory() if option.default_factory is not MISSING else option.default
            if isinstance(value, AcceleratorConfig):
                usual, default = AcceleratorConfig().to_dict(), {}
                value = {name: given for name, given in value.to_dict().items() if given != usual[name]}
            if value is None and option.name == "pad_to_multiple_of":  # what auto finds without a GPU
                continue
            plain = isinstance(value, bool | int | float | str | list | dict | None)
            if option.init and plain and value != default and option.name not in derived | {"hub_token"}:
                values[option.name] = getattr(value, "value", value)
    return yaml.safe_dump(values, sort_keys=False)


def check_here(training_args: TrainingArguments, model_args: ModelConfig, dataset_name: str | None = None) -> None:
    """Look for what a run needs of this machine; the last of a recipe's checks, since another may have it.

    Raises:
        MissingHereError: `output_dir` cannot be written or holds another run, or `dataset_name`,
            `resume_from_checkpoint` or `model_name_or_path` is a path that is not there, or not what it should be.
    """
    check_output_dir(str(training_args.output_dir))
    asked, last = training_args.resume_from_checkpoint, last_whole_checkpoint(Path(str(training_args.output_dir)))
    if not asked and last is not None:
        raise MissingHereError(  # whose checkpoints would stand among this run's, and the last of all be gone on with
            f"output_dir: {training_args.output_dir} holds a run already ({last.name}): go on with it by "
            "resume_from_checkpoint: true, or give another output_dir"
        )
    if asked and asked is not True:
        last = Path(asked)
        if not last.is_dir():
            raise MissingHereError(f"resume_from_checkpoint: no such folder: {asked}{nearest_path(asked)}")
        if not has_mark(last):
            raise MissingHereError(
                f"resume_from_checkpoint: {asked} is no checkpoint that was saved to its end (no {MARK}): name "
                "another, or write true for the last one in output_dir"
            )
    if last is not None and is_adapter(last) != model_args.use_peft:
        held = "an adapter" if is_adapter(last) else "a whole model"
        raise MissingHereError(f"resume_from_checkpoint: {last} holds {held}: set use_peft as its run did")
    need_model(model_args.model_name_or_path)
    if dataset_name is not None:
        need_path(dataset_name, "dataset_name")


def need_model(name: str | None, option: str = "model_name_or_path") -> None:
    """Raise [`MissingHereError`] for a model whose name can only be a folder, and that is not there."""
    if name is None or name == "starter":
        return
    if is_path(name) and not Path(name).is_dir():
        raise MissingHereError(f"{option}: no such folder: {name}{nearest_path(name)}")
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file() and not is_adapter(name):
        raise MissingHereError(f"{option}: {name} holds no model (no config.json)")


def check_output_dir(output_dir: str) -> None:
    """Raise [`MissingHereError`] for a folder that cannot be made or written, as far as looking tells."""
    folder = Path(output_dir).absolute()
    try:
        place = next(place for place in (folder, *folder.parents) if place.exists())
    except OSError as error:
        raise MissingHereError(f"output_dir: {output_dir}: {error.strerror}") from error
    if not place.is_dir():
        raise MissingHereError(f"output_dir: {place} is a file: name a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise MissingHereError(f"output_dir: {place} cannot be written: name another folder, or mend its rights")


def checkpoint_to_resume(training_args: TrainingArguments) -> str | None:
    """Resolve `resume_from_checkpoint`: a folder, or true for the run's last whole checkpoint."""
    asked = training_args.resume_from_checkpoint
    if not asked:
        return None
    if asked is not True:
        return asked
    found = last_whole_checkpoint(Path(training_args.output_dir))
    if found is None:
        print(f"No complete checkpoint in {training_args.output_dir} yet: starting from the beginning.")
    return None if found is None else str(found)


def remove_torn_checkpoints(checkpoint: Path) -> None:
    """Delete what a run that was killed while it saved has left: later checkpoints than this one, without a mark.

    `save_total_limit` would count them. A mark that cannot be read deletes nothing, and neither does an earlier folder
    without one: someone may have kept its weights alone.
    """
    at = checkpoint.name.removeprefix("checkpoint-")
    for folder in checkpoint.parent.glob("checkpoint-*"):
        step = folder.name.removeprefix("checkpoint-")
        is_later = at.isdecimal() and step.isdecimal() and int(step) > int(at)
        if is_later and folder.is_dir() and not folder.is_symlink() and not has_mark(folder):
            print(f"{folder} was not saved to its end and is deleted")
            shutil.rmtree(folder)


def is_finished(checkpoint: str, training_args: TrainingArguments) -> bool:
    """Tell whether a checkpoint has trained as long as is asked for; `Trainer` would train one step more."""
    state = json.loads((Path(checkpoint) / MARK).read_text())
    if training_args.max_steps > 0:
        return state["global_step"] >= training_args.max_steps
    return (state["epoch"] or 0) >= training_args.num_train_epochs


def save_finished(checkpoint: Path, output_dir: Path) -> None:
    """Copy the model of a run's last checkpoint to where the run would have saved it, without what resuming needs."""
    for file in checkpoint.iterdir():
        if file.is_file() and not any(fnmatch(file.name, pattern) for pattern in RESUME_FILES):
            shutil.copy2(file, output_dir / file.name)


def best_checkpoint(checkpoint: Path) -> Path:
    """Return the best checkpoint of a run, as a checkpoint of it recorded, wherever the run's folder is by now.

    Raises [`ConfigError`] if it is gone.
    """
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    if not state.get("best_model_checkpoint"):
        return checkpoint
    recorded = Path(state["best_model_checkpoint"])
    best = next((path for path in (checkpoint.parent / recorded.name, recorded) if path.is_dir()), None)
    if best is None:
        raise ConfigError(
            f"{checkpoint} names {recorded} as its run's best checkpoint, and it is not there: put it back, or set "
            "load_best_model_at_end: false"
        )
    return best


def begin_run(script_args: KeepsRecipe, training_args: TrainingArguments, model_args: ModelConfig) -> str:
    """Return the recipe that a run keeps; where it resumes another recipe's run, print what differs.

    Raises:
        ConfigError: if the checkpoint cannot be resumed with what differs.
    """
    asked = training_args.resume_from_checkpoint
    folder = Path(str(training_args.output_dir)) if asked is True else Path(str(asked)).parent
    began = read_kept(folder) if asked and (asked is not True or last_whole_checkpoint(folder)) else None
    if began is not None:
        changes = differences(began, script_args.given, script_args, training_args, model_args)
        for name in fixed(changes):
            old, new = changes[name]
            raise ConfigError(
                f"{name}: the run in {folder} began with {old}, and its checkpoints cannot be resumed with {new}: set "
                "it back, or begin a run in another output_dir with model_name_or_path: CHECKPOINT"
            )
        show_changes(folder, changes)
    return script_args.recipe


def show_changes(folder: Path, changes: Mapping[str, tuple[Any, Any]]) -> None:
    """Print, once for all processes, in what a recipe differs from the one that a run began with."""
    lines = describe(changes)
    if lines and reports():
        print("\n  ".join([f"Resuming the run in {folder} with another recipe:", *lines]), flush=True)


def settle_folder(
    folder: Path, configs: Sequence[Any], resume: bool, *, parts: str, may_change: Collection[str]
) -> None:
    """Begin the folder of a run that is made of parts, or see that what is there was made by this recipe.

    Args:
        folder (`Path`): the run's.
        configs (`Sequence`): the dataclasses of its options; the first one has the recipe that the folder keeps.
        resume (`bool`): whether a run that is there is to be gone on with.
        parts (`str`): pattern of the files, below the folder, that say that a part is done.
        may_change (`Collection[str]`): keys that may differ from what the run began with.

    Raises [`ConfigError`] if a run is there and is not to be gone on with, or was another recipe's.
    """
    from metatune.eval.files import write_atomically

    began = read_kept(folder)
    if began is not None and any(folder.glob(parts)):
        if not resume:
            raise ConfigError(
                f"{folder} holds a run already: go on with it by resume_from_checkpoint: true, or give another "
                "output_dir"
            )
        changes = differences(began, configs[0].given, *configs)
        refused = without(changes, may_change)
        if refused:
            raise ConfigError(
                f"{next(iter(refused))} is not what the run in {folder} began with (its {NAME}); give another "
                f"output_dir, or set back {', '.join(describe(refused))}"
            )
        show_changes(folder, changes)
    hold_folder(str(folder))
    write_atomically(folder / NAME, lambda temporary: temporary.write_text(configs[0].recipe))


_HELD: list[Any] = []


def hold_until_exit(trainer: Trainer) -> None:
    """Keep a trainer of several processes, and their group, from being freed before the process ends.

    Once the group is destroyed, DDP's reducer may be the last to hold it. Freeing it joins gloo's threads while
    Python's lock is held, and such a thread may wait for that lock to free a tensor: a saved run that never ends.
    """
    if dist.is_initialized():
        _HELD.extend([trainer, dist.group.WORLD])


def dataset_names(script_args: Any) -> list[str]:
    """Return the names of what a recipe trains on, for the model card."""
    names = [script_args.dataset_name, *(entry["path"] for entry in script_args.datasets or [])]
    for entry in getattr(script_args, "distributions", None) or []:
        path = entry.get("path", [])
        names += path if isinstance(path, list) else [path]
    return [name for name in dict.fromkeys(names) if name is not None]


def train_and_save(trainer: Trainer, recipe: str, checkpoint: str | None, dataset_names: list[str]) -> None:
    """Train, from `checkpoint` if there is one, and save the model, its tokenizer and `recipe` in `output_dir`."""
    output_dir = Path(trainer.args.output_dir)
    if trainer.is_world_process_zero():
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / NAME).write_text(recipe)
        if checkpoint is not None and Path(checkpoint).resolve().parent == output_dir.resolve():
            remove_torn_checkpoints(Path(checkpoint))
    kept = None if checkpoint is None else Path(checkpoint)
    if kept is not None and trainer.args.load_best_model_at_end:
        kept = best_checkpoint(kept)  # also looks whether it is there: `Trainer` would end with the last one
    if checkpoint is not None and kept is not None and is_finished(checkpoint, trainer.args):
        best = "" if kept == Path(checkpoint) else f" of {kept.name}, the best one,"
        trainer.accelerator.print(f"{checkpoint} is the end of its run: saving the model{best} training nothing")
        if trainer.is_world_process_zero():
            with STOPPER.finishing():
                save_finished(kept, output_dir)
    else:
        trainer.add_callback(ShardingReport())
        trainer.add_callback(StopAfterStep())  # the last one: no other misses a checkpoint
        trainer.train(resume_from_checkpoint=checkpoint)
        with STOPPER.finishing():
            trainer.save_model(str(output_dir))
        trainer.accelerator.print(f"Saved to {output_dir}; metatune report {output_dir} makes a page of the run")
        if trainer.args.push_to_hub:
            trainer.push_to_hub(dataset_name=dataset_names)
        else:
            trainer.create_model_card(model_name=output_dir.name, dataset_name=dataset_names)
    trainer.accelerator.wait_for_everyone()
    hold_until_exit(trainer)
    trainer.accelerator.end_training()
