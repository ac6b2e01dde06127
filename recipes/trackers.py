"""Experiment trackers of `report_to`: their names, their packages, and whether one is logged in."""

import netrc
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .config import ConfigError, MissingHereError
from .conform import choose


@dataclass(frozen=True)
class Tracker:
    """What a tracker needs on this machine.

    Args:
        modules (`tuple[str, ...]`): modules of which one is imported.
        install (`str`): the package that pip installs.
        logged_in (`Callable[[], bool]`, *optional*): whether its key is here; `None` if it needs none.
        login (`str`, *optional*, defaults to `""`): how to log in.
    """

    modules: tuple[str, ...]
    install: str
    logged_in: Callable[[], bool] | None = None
    login: str = ""


def _wandb_is_logged_in() -> bool:
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun") or os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    return _in_netrc(str(host), Path(os.environ.get("NETRC") or Path.home() / ".netrc"))


def _in_netrc(host: str, file: Path) -> bool:
    try:
        return netrc.netrc(file).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _comet_is_logged_in() -> bool:
    offline = os.environ.get("COMET_START_ONLINE", "1") == "0"
    return offline or bool(os.environ.get("COMET_API_KEY")) or (Path.home() / ".comet.config").exists()


def _neptune_is_logged_in() -> bool:
    return bool(os.environ.get("NEPTUNE_API_TOKEN")) or os.environ.get("NEPTUNE_MODE") in ("offline", "debug")


TRACKERS = {
    "azure_ml": Tracker(("azureml",), "azureml-core"),
    "clearml": Tracker(("clearml",), "clearml"),
    "codecarbon": Tracker(("codecarbon",), "codecarbon"),
    "comet_ml": Tracker(("comet_ml",), "comet-ml", _comet_is_logged_in, "run `comet login`, or set COMET_API_KEY"),
    "dagshub": Tracker(("dagshub",), "dagshub"),
    "dvclive": Tracker(("dvclive",), "dvclive"),
    "flyte": Tracker(("flytekit",), "flytekit"),
    "kubeflow": Tracker(("kubeflow",), "kubeflow"),
    "mlflow": Tracker(("mlflow",), "mlflow"),
    "neptune": Tracker(("neptune",), "neptune", _neptune_is_logged_in, "set NEPTUNE_API_TOKEN"),
    "swanlab": Tracker(("swanlab",), "swanlab"),
    "tensorboard": Tracker(("tensorboard", "tensorboardX"), "tensorboard"),
    "trackio": Tracker(("trackio",), "trackio"),
    "wandb": Tracker(
        ("wandb",), "wandb", _wandb_is_logged_in, "run `wandb login`, set WANDB_API_KEY, or set WANDB_MODE=offline"
    ),
}


def check_trackers(training_args: Any) -> None:
    """Raise an error unless every tracker can be used.

    Args:
        training_args (`TrainingArguments`): names the trackers as `report_to`.

    Raises:
        ConfigError: an unknown tracker.
        MissingHereError: one that is not installed or not logged in here.
    """
    asked = training_args.report_to
    for name in [asked] if isinstance(asked, str) else asked or []:
        if name in ("none", "all"):  # all: those that are installed
            continue
        try:
            choose(name, [*TRACKERS, "all", "none"])
        except ValueError as error:
            raise ConfigError(f"report_to: {error}") from error
        tracker = TRACKERS[name]
        if all(find_spec(module) is None for module in tracker.modules):
            raise MissingHereError(
                f"report_to: {name} is not installed: pip install {tracker.install}, or set report_to: none"
            )
        if tracker.logged_in is not None and not tracker.logged_in():
            raise MissingHereError(f"report_to: {name} has no key here: {tracker.login}, or set report_to: none")
