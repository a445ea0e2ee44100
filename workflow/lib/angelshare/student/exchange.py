"""The folder through which a job and the processes that train its student speak to each other.

It lies on the file system that all nodes share. The job leaves the request and the launch there,
and ``stop`` when it was asked to end; the first process appends its progress and leaves the result;
any process that fails leaves its error. Everything but the events appears whole.
"""

from __future__ import annotations

import json
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from angelshare.errors import AngelshareError
from angelshare.files import publish_json, read_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How many processes train, and where they meet."""

    nodes: int
    processes: int
    """On each node."""
    address: str
    """Of the first node, for more than one."""
    port: int

    @property
    def world(self) -> int:
        """All processes."""
        return self.nodes * self.processes


class Exchange:
    """One training's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read = 0

    # -- the job's side ---------------------------------------------------------------------------

    def ask_to_stop(self) -> None:
        """Have the training save where it stands and end."""
        (self.folder / "stop").touch()

    def events(self) -> list[dict[str, Any]]:
        """What the first process has said since the last call."""
        try:
            with (self.folder / "events.jsonl").open("rb") as stream:
                stream.seek(self._read)
                lines = stream.read().rpartition(b"\n")[0]
        except FileNotFoundError:
            return []
        self._read += len(lines) + bool(lines)
        return [json.loads(line) for line in lines.splitlines()]

    def result(self) -> dict[str, Any] | None:
        """What came out, once it has."""
        path = self.folder / "result.json"
        return dict(read_json(path)) if path.exists() else None

    def failure(self) -> str | None:
        """The error that most likely led to all others, with the process it came from.

        A clear error comes before an unexpected one, an earlier one before a later: processes that
        lose another one fail as well.
        """
        found = [read_json(path) for path in self.folder.glob("failed-*.json")]
        if not found:
            return None
        first = min(found, key=lambda one: (not one["clear"], one["utc_ns"]))
        return f"{first['who']}: {first['text']}"

    # -- the processes' side ----------------------------------------------------------------------

    def start(self, launch: Launch) -> None:
        """Leave the launch for them."""
        publish_json(self.folder / "launch.json", asdict(launch))

    def launch(self) -> Launch:
        """What `start` left."""
        return Launch(**read_json(self.folder / "launch.json"))

    def asked_to_stop(self) -> bool:
        """Whether the job wants an end."""
        return (self.folder / "stop").exists()

    def say(self, **event: Any) -> None:
        """Append an event."""
        with (self.folder / "events.jsonl").open("a") as stream:
            stream.write(json.dumps(event) + "\n")

    def finish(self, result: dict[str, Any]) -> None:
        """Leave the result."""
        publish_json(self.folder / "result.json", result)

    def fail(self, who: str, error: BaseException) -> None:
        """Leave the error of process ``who``, as a text."""
        clear = isinstance(error, AngelshareError)
        text = str(error) if clear else "".join(traceback.format_exception(error))
        publish_json(
            self.folder / f"failed-{who.replace(' ', '-')}.json",
            {"who": who, "clear": clear, "text": text, "utc_ns": time.time_ns()},
        )
