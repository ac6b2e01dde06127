"""Check a launch's access to the hub: models that are not on this machine, and permission to push."""

from functools import cache
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..curricula.hub_access import hub_answers
from .config import ConfigError, MissingHereError
from .conform import nearest
from .data import is_path, nearest_path

OFFLINE = "HF_HUB_OFFLINE is set"


def find_model(name: str | None, option: str, revision: str | None = None, file: str = "config.json") -> None:
    """Raise [`MissingHereError`] for a model that is neither a folder nor one that the hub, or its cache, gives.

    Args:
        name (`str`, *optional*): the model; nothing is looked for without one, and for `starter`.
        option (`str`): the option that names it.
        revision (`str`, *optional*): its revision on the hub.
        file (`str`, *optional*, defaults to `"config.json"`): a file that it must have.
    """
    name = str(name or "starter")
    if name == "starter" or Path(name).is_dir() or is_path(name):  # `need_model` reports a missing path
        return
    problem = _problem_on_hub(name, revision, file)
    if problem is not None:
        raise MissingHereError(f"{option}: {problem}")


@cache  # several checks need the same model, and a hub that does not answer takes half a minute to fail
def _problem_on_hub(name: str, revision: str | None, file: str) -> str | None:
    """Return why neither the hub nor its cache has a file of a model, and how to fix it; `None` if one has it."""
    cached = cached_models()
    suggestion = nearest_path(name, "starter", *cached)
    if "/" not in name and name not in cached and nearest(name, ["starter"]):
        return f"'{name}' is not a folder here, nor in the hub's cache{suggestion}"
    try:
        huggingface_hub.hf_hub_download(name, file, revision=revision, local_files_only=not hub_answers())
        return None
    except GatedRepoError:
        ask = f"ask for it at {constants.ENDPOINT}/{name}, then `hf auth login`"
        return f"{name}: access must be requested: {ask}"
    except RevisionNotFoundError:
        return f"{name} has no revision '{revision}' on the hub"
    except LocalEntryNotFoundError:
        offline = OFFLINE if constants.HF_HUB_OFFLINE else "the hub does not answer"
        reason = f"nor is it in the hub's cache here, and {offline}"
    except RepositoryNotFoundError:
        reason = "nor a model on the hub that this machine's token can read"
    except EntryNotFoundError:
        return f"{name}: the hub's repository has no {file}"
    except HFValidationError:
        reason = "nor a valid name on the hub, owner/name"
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        reason = f"and downloading it from the hub failed: {' '.join(str(error).split())[:200]}"
    return f"'{name}' is not a folder here, {reason}{suggestion}"


def cached_models() -> list[str]:
    """Return the names of the models in the hub's cache."""
    folders = Path(constants.HF_HUB_CACHE).glob("models--*")
    return sorted(folder.name.removeprefix("models--").replace("--", "/") for folder in folders)


def check_push(training_args: Any) -> None:
    """Raise an error unless `push_to_hub` can work: a token with write access, and a valid repository.

    Args:
        training_args (`TrainingArguments`): `push_to_hub`, `hub_model_id`, `hub_token` and `output_dir`.

    Raises:
        ConfigError: the repository's name is invalid, or the token has no write access to it.
        MissingHereError: there is no token here, or the hub cannot be reached.
    """
    if not training_args.push_to_hub:
        return
    repository = training_args.hub_model_id or Path(training_args.output_dir).absolute().name
    option = "hub_model_id" if training_args.hub_model_id else "push_to_hub"
    try:
        huggingface_hub.utils.validate_repo_id(repository)
    except HFValidationError as error:
        raise ConfigError(f"{option}: {error}; set hub_model_id: owner/name") from None
    if constants.HF_HUB_OFFLINE:
        raise MissingHereError(
            f"push_to_hub: {OFFLINE}, and the trainer creates the repository '{repository}' when it starts: unset the "
            "variable, or set push_to_hub: false and push afterwards with `hf upload`"
        )
    try:
        who = huggingface_hub.HfApi(token=training_args.hub_token).whoami()
    except LocalTokenNotFoundError:
        raise MissingHereError(
            "push_to_hub: there is no hub token on this machine: run `hf auth login`, or set HF_TOKEN"
        ) from None
    except HfHubHTTPError as error:
        raise ConfigError(f"push_to_hub: the hub refuses the token: {' '.join(str(error).split())[:200]}") from None
    except (httpx.HTTPError, OSError) as error:
        raise MissingHereError(
            f"push_to_hub: the hub does not answer at {constants.ENDPOINT} ({' '.join(str(error).split())[:200]}), so "
            "whether this token may push is unknown; set push_to_hub: false to train without it"
        ) from None
    check_rights(who, repository, option)


def check_rights(who: dict[str, Any], repository: str, option: str) -> None:
    """Raise [`ConfigError`] unless a token may write to a repository.

    Args:
        who (`dict[str, Any]`): the hub's response to `whoami` for the token.
        repository (`str`): `owner/name`, or `name` for the token's user.
        option (`str`): the option that names the repository.
    """
    if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise ConfigError(
            f"push_to_hub: the token of {who['name']} is read-only: create one with write access at "
            f"{constants.ENDPOINT}/settings/tokens, then run `hf auth login`"
        )
    owner = repository.split("/")[0] if "/" in repository else who["name"]
    owners = [who["name"], *(each["name"] for each in who.get("orgs", []))]
    if owner not in owners:
        raise ConfigError(f"{option}: the token has write access to {', '.join(owners)}, not to '{owner}'")
