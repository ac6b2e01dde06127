"""All rubrics of a run: which there were, which was in force when, and why.

`rubrics/` in the run's folder has a file for each version, never changed once written: its rubric, its parent, the
cases and analyses that led to it, and the gate's verdict. Refused ones are kept too. `log.jsonl` has the events in
order. Both are written by the main process alone, each file whole or not at all, so that they can be read while the
run goes on.

A checkpoint holds how far the history was. Resuming from an earlier one moves what came after it into `abandoned-N/`.
A user's wish to go back, `metatune rubric rollback`, is a file that the next resume takes up once.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .rubric import Rubric

LOG, REQUEST = "log.jsonl", "request.json"
EVENTS = ("given", "accepted", "refused", "failed", "rolled_back")


@dataclass(frozen=True)
class RubricVersion:
    """A rubric with its story.

    Args:
        number (`int`): counted from 0, the rubric that was given.
        rubric (`Rubric`): the version itself.
        parent (`int`, *optional*): the version that it was made from.
        step (`int`): optimizer steps when it was made.
        accepted (`bool`): whether the gate let it through; version 0 needs no gate.
        verdict (`dict`, *optional*): the gate's numbers.
        analyses (`list[str]`): what the meta judge found.
        cases (`list[dict]`): the judged completions that it was shown.
    """

    number: int
    rubric: Rubric
    parent: int | None = None
    step: int = 0
    accepted: bool = True
    verdict: dict[str, Any] | None = None
    analyses: list[str] = field(default_factory=list)
    cases: list[dict[str, Any]] = field(default_factory=list)

    @property
    def file_name(self) -> str:
        return f"version-{self.number:03d}.json"

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "rubric": self.rubric.to_dict()}


class RubricHistory:
    """
    Args:
        folder (`Path`): `rubrics/` of a run; made when the first version is written.

    Attributes:
        versions (`list[RubricVersion]`): all of them, by number.
        events (`list[dict]`): `event` (one of `EVENTS`), `version`, `step` and `reason`, in their order.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.versions: list[RubricVersion] = []
        self.events: list[dict[str, Any]] = []

    @classmethod
    def read(cls, folder: str | Path) -> "RubricHistory":
        """Read a run's history as it stands.

        Raises:
            ValueError: there is none, or a file of it cannot be read. Names the file.
        """
        history = cls(folder)
        if not (history.folder / LOG).is_file():
            raise ValueError(f"{history.folder / LOG} is missing: the run has no rubrics")
        history.events = _read_events(history.folder / LOG)
        numbers = {event["version"] for event in history.events if event["version"] is not None}
        history.versions = [_read_version(history.folder, number) for number in range(max(numbers) + 1)]
        return history

    @property
    def current(self) -> RubricVersion:
        """The version in force."""
        return self.versions[self._number_at(len(self.events))]

    def begin(self, rubric: Rubric) -> None:
        """Write version 0; what another run left in the folder is moved away."""
        self._abandon(0, 0)
        self.versions, self.events = [], []
        self._add(RubricVersion(0, rubric), "given", 0, "the rubric that the run began with")

    def propose(
        self,
        rubric: Rubric,
        *,
        step: int,
        accepted: bool,
        reason: str,
        verdict: dict[str, Any] | None = None,
        analyses: list[str] | None = None,
        cases: list[dict[str, Any]] | None = None,
    ) -> RubricVersion:
        """Add a version made from the current one; it is in force from now on if it was accepted."""
        parent = self.current.number
        story = (parent, step, accepted, verdict, list(analyses or []), list(cases or []))
        version = RubricVersion(len(self.versions), rubric, *story)
        self._add(version, "accepted" if accepted else "refused", step, reason)
        return version

    def note_failure(self, step: int, reason: str) -> None:
        """Record a meta step that came to nothing."""
        self._log("failed", None, step, reason)

    def roll_back(self, number: int, step: int, reason: str) -> RubricVersion:
        """Put an earlier version in force again.

        Raises:
            ValueError: there is no such version.
        """
        if not 0 <= number < len(self.versions):
            raise ValueError(f"there is no version {number} (there are 0 to {len(self.versions) - 1})")
        self._log("rolled_back", number, step, reason)
        return self.versions[number]

    def request_rollback(self, number: int, reason: str, force: bool = False) -> None:
        """Leave the wish that the next resume goes on with an earlier version.

        Raises:
            ValueError: there is no such version, or it was refused and `force` is not set.
        """
        if not 0 <= number < len(self.versions):
            raise ValueError(f"there is no version {number} (there are 0 to {len(self.versions) - 1})")
        if not self.versions[number].accepted and not force:
            raise ValueError(f"version {number} was refused by the gate: add --force to take it all the same")
        _write(self.folder / REQUEST, {"version": number, "reason": reason})

    def state_dict(self) -> dict[str, Any]:
        """Return how far the history is, as JSON."""
        return {
            "versions": len(self.versions),
            "events": len(self.events),
            "current": self.current.number,
            "rubric": self.current.rubric.to_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        """Go back to what was saved, and take up a wish to roll back.

        Args:
            state (`dict`): of `state_dict`.
            step (`int`): optimizer steps of the checkpoint.

        Raises:
            ValueError: the folder is not that of the checkpoint's run, or files are missing.
        """
        events = _read_events(self.folder / LOG)
        if len(events) < state["events"]:
            raise ValueError(
                f"{self.folder / LOG} has {len(events)} events, the checkpoint knows {state['events']}: put the "
                "folder rubrics of its run beside it"
            )
        versions = [_read_version(self.folder, number) for number in range(state["versions"])]
        if versions[state["current"]].rubric.to_dict() != state["rubric"]:
            raise ValueError(
                f"{self.folder / versions[state['current']].file_name} is not the rubric of the checkpoint: put the "
                "folder rubrics of its run beside it"
            )
        self._abandon(state["versions"], state["events"])
        self.versions, self.events = versions, events[: state["events"]]
        self._write_log()
        request = self.folder / REQUEST
        if request.is_file():
            wish = _read_json(request)
            self.roll_back(wish["version"], step, wish["reason"])
            request.unlink()

    def _number_at(self, number_of_events: int) -> int:
        """Return the version in force after so many events."""
        for event in reversed(self.events[:number_of_events]):
            if event["event"] in ("given", "accepted", "rolled_back"):
                return event["version"]
        raise ValueError("no rubric has been given yet")

    def _add(self, version: RubricVersion, event: str, step: int, reason: str) -> None:
        _write(self.folder / version.file_name, version.to_dict())
        self.versions.append(version)
        self._log(event, version.number, step, reason)

    def _log(self, event: str, version: int | None, step: int, reason: str) -> None:
        self.events.append({"event": event, "version": version, "step": step, "reason": reason})
        self._write_log()

    def _write_log(self) -> None:
        _write_text(self.folder / LOG, "".join(json.dumps(event) + "\n" for event in self.events))

    def _abandon(self, num_versions: int, num_events: int) -> None:
        """Move versions and events from these numbers on into a folder of their own."""
        files = sorted(self.folder.glob("version-*.json"))[num_versions:]
        log = self.folder / LOG
        if not files and (not log.is_file() or len(_read_events(log)) <= num_events):
            return
        number = len(list(self.folder.glob("abandoned-*")))
        target = self.folder / f"abandoned-{number}"
        target.mkdir(parents=True)
        (target / LOG).write_text(log.read_text() if log.is_file() else "")
        for path in files:
            path.rename(target / path.name)


def _read_version(folder: Path, number: int) -> RubricVersion:
    path = folder / f"version-{number:03d}.json"
    values = _read_json(path)
    try:
        return RubricVersion(**{**values, "rubric": Rubric.from_dict(values["rubric"])})
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: no version of a rubric: {error}") from error


def _read_events(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error


def _write(path: Path, values: dict[str, Any]) -> None:
    _write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
