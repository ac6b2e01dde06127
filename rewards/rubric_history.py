"""All rubrics of a run: which there were, which was in force when, and why.

`rubrics/` in the run's folder has a file for each version, never changed once written: its rubric, its parent, the
cases and analyses that led to it, and the gate's verdict. Refused ones are kept too. `log.jsonl` has the events in
order. Both are written by the main process alone, each file whole or not at all, so that they can be read while the
run goes on.

A checkpoint holds the story so far. Resuming from an earlier one moves what came after it into `abandoned-N/`. A
user's wish to go back, `metatune rubric rollback`, is a file that the next resume takes up once; from then on it is an
event, which stays if the run dies before its next checkpoint.
"""

import json
from dataclasses import dataclass, field
from itertools import takewhile
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
        """The name of its file in the history's folder."""
        return f"version-{self.number:03d}.json"

    def to_dict(self) -> dict[str, Any]:
        """Return the version as its file holds it, in JSON values."""
        return {**vars(self), "rubric": self.rubric.to_dict()}


class RubricHistory:
    """
    Args:
        folder (`Path`): `rubrics/` of a run; made when the first version is written.

    Attributes:
        versions (`list[RubricVersion]`): all of them, by number.
        events (`list[dict]`): `event` (one of `EVENTS`), `version`, `step` and `reason`, in their order; `by` is there
            and `user` where a user went back.
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
        numbers = [event["version"] for event in history.events if event["version"] is not None]
        if not numbers:
            raise ValueError(f"{history.folder / LOG} is empty: the run has no rubrics")
        history.versions = [_read_version(history.folder, number) for number in range(max(numbers) + 1)]
        return history

    @property
    def wish(self) -> dict[str, Any] | None:
        """The user's wish that the next resume takes up: `version` and `reason`; `None` where there is none.

        Raises:
            ValueError: its file cannot be read.
        """
        path = self.folder / REQUEST
        if not path.is_file():
            return None
        wish = _read_json(path)
        if not isinstance(wish, dict) or not isinstance(wish.get("version"), int) or "reason" not in wish:
            raise ValueError(f"{path}: no wish to go back: delete it, or run metatune rubric rollback again")
        return wish

    @property
    def current(self) -> RubricVersion:
        """The version in force."""
        for event in reversed(self.events):
            if event["event"] in ("given", "accepted", "rolled_back"):
                return self.versions[event["version"]]
        raise ValueError("no rubric has been given yet")

    def begin(self, rubric: Rubric) -> None:
        """Write version 0; what another run left in the folder is moved away."""
        moved_to, wish = self._abandon(0, []), self.folder / REQUEST
        if moved_to is not None and wish.is_file():
            wish.rename(moved_to / REQUEST)  # it is for a version of the other run
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
        self._log(_event("failed", None, step, reason))

    def version(self, number: int) -> RubricVersion:
        """Return a version; raises `ValueError` where there is none of this number."""
        if not 0 <= number < len(self.versions):
            raise ValueError(f"there is no version {number} (there are 0 to {len(self.versions) - 1})")
        return self.versions[number]

    def roll_back(self, number: int, step: int, reason: str) -> RubricVersion:
        """Put an earlier version in force again.

        Raises:
            ValueError: there is no such version.
        """
        version = self.version(number)
        self._log(_event("rolled_back", number, step, reason))
        return version

    def request_rollback(self, number: int, reason: str, force: bool = False) -> None:
        """Leave the wish that the next resume goes on with an earlier version.

        Raises:
            ValueError: there is no such version, or it was refused and `force` is not set.
        """
        if not self.version(number).accepted and not force:
            raise ValueError(f"version {number} was refused by the gate: add --force to take it all the same")
        _write(self.folder / REQUEST, {"version": number, "reason": reason})

    def state_dict(self) -> dict[str, Any]:
        """Return the story so far, as JSON: the events, and of the versions only the rubric in force."""
        return {
            "versions": len(self.versions),
            "events": list(self.events),
            "current": self.current.number,
            "rubric": self.current.rubric.to_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        """Go back to what was saved, and take up a wish to roll back.

        Args:
            state (`dict`): of `state_dict`.
            step (`int`): optimizer steps of the checkpoint.

        Raises:
            ValueError: the folder is not that of the checkpoint's run, files are missing, or the wish is for a version
                that came after the checkpoint. Nothing has been moved then.
        """
        log, advice = self.folder / LOG, "put the folder rubrics of its run beside it"
        events, known = _read_events(log), state["events"]
        if len(events) < len(known):
            raise ValueError(f"{log} has {len(events)} events, the checkpoint knows {len(known)}: {advice}")
        if events[: len(known)] != known:
            raise ValueError(f"{log} tells another story than the checkpoint: {advice}")
        versions = [_read_version(self.folder, number) for number in range(state["versions"])]
        if versions[state["current"]].rubric.to_dict() != state["rubric"]:
            path = self.folder / versions[state["current"]].file_name
            raise ValueError(f"{path} is not the rubric of the checkpoint: {advice}")
        if (wish := self.wish) is not None and not 0 <= wish["version"] < len(versions):
            raise ValueError(
                f"{self.folder / REQUEST} asks for version {wish['version']}, which the checkpoint of step {step} "
                f"does not know (it knows 0 to {len(versions) - 1}): ask for one of these, or delete the file"
            )
        # a wish that was taken up at this very checkpoint, by a run that died before its next one
        taken_up = takewhile(lambda event: event.get("by") == "user" and event["step"] == step, events[len(known) :])
        events = [*known, *taken_up]
        self._abandon(len(versions), events)
        self.versions, self.events = versions, events
        if wish is not None:
            event = _event("rolled_back", wish["version"], step, wish["reason"], by="user")
            if self.events[-1] != event:  # else killed before the wish was taken away
                self._log(event)
            (self.folder / REQUEST).unlink()

    def _add(self, version: RubricVersion, event: str, step: int, reason: str) -> None:
        _write(self.folder / version.file_name, version.to_dict())
        self.versions.append(version)
        self._log(_event(event, version.number, step, reason))

    def _log(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        self._write_log(self.events)

    def _write_log(self, events: list[dict[str, Any]]) -> None:
        _write_text(self.folder / LOG, "".join(json.dumps(event) + "\n" for event in events))

    def _abandon(self, num_versions: int, events: list[dict[str, Any]]) -> Path | None:
        """Keep these versions and events, and move the others into a folder of their own, which is returned."""
        files = sorted(path for path in self.folder.glob("version-*.json") if _number(path) >= num_versions)
        log = self.folder / LOG
        if not files and (not log.is_file() or _read_events(log) == events):
            return None
        target = self.folder / f"abandoned-{1 + max(map(_number, self.folder.glob('abandoned-*')), default=-1)}"
        target.mkdir(parents=True)
        if log.is_file():
            _write_text(target / LOG, log.read_text(encoding="utf-8"))
        if events:
            self._write_log(events)  # before files go, so that the log names none that is not there
        for path in files:
            path.rename(target / path.name)
        return target


def _event(event: str, version: int | None, step: int, reason: str, **more: str) -> dict[str, Any]:
    return {"event": event, "version": version, "step": step, "reason": reason, **more}


def event_name(event: dict[str, Any]) -> str:
    """Return what an event was, in words."""
    return event["event"].replace("_", " ") + (" by the user" if event.get("by") == "user" else "")


def _number(path: Path) -> int:
    """Return the number at the end of a name, -1 where there is none."""
    digits = path.stem.rpartition("-")[2]
    return int(digits) if digits.isdecimal() else -1


def _read_version(folder: Path, number: int) -> RubricVersion:
    path = folder / f"version-{number:03d}.json"
    values = _read_json(path)
    try:
        version = RubricVersion(**{**values, "rubric": Rubric.from_dict(values["rubric"])})
        if version.number != number:
            raise ValueError(f"it says that it is version {version.number}")
        if version.parent not in ([None] if number == 0 else range(number)):
            raise ValueError(f"version {version.parent} cannot be its parent")
        if not all(isinstance(case, dict) for case in version.cases):
            raise ValueError("a case is a mapping")
        return version
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
    temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # half a surrogate pair, as JSON has it
    temporary.replace(path)
