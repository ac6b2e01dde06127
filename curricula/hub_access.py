"""Whether the hub can be reached, and whether a dataset of it is cached here.

The hub's clients retry every file of an unreachable hub for more than 20 s. One question beforehand spares the wait.
"""

from functools import cache
from pathlib import Path

import httpx
from huggingface_hub import constants


def hub_answers() -> bool:
    """Return whether the hub can be reached."""
    return not constants.HF_HUB_OFFLINE and _answers(constants.ENDPOINT)


@cache
def _answers(endpoint: str) -> bool:
    try:
        httpx.head(endpoint, timeout=10)
    except httpx.HTTPError:
        return False
    return True


def is_cached(dataset: str) -> bool:
    """Return whether a dataset of the hub is in the cache of this machine."""
    import datasets
    from datasets.naming import camelcase_to_snakecase

    *owner, name = dataset.split("/")
    return (Path(datasets.config.HF_DATASETS_CACHE) / "___".join([*owner, camelcase_to_snakecase(name)])).is_dir()


def need_hub(dataset: str) -> None:
    """Raise `ConnectionError` for a dataset that is not cached if the hub cannot be reached."""
    if not is_cached(dataset) and not hub_answers():
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub does not answer"
        raise ConnectionError(f"it is not in the hub's cache here, and {why}")
