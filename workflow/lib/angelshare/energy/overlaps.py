"""Windows that charge the same whole device at the same time, on one machine.

Every open window has a file in a folder that all users of the machine share; a window that opens
tells the others of its devices by a line in theirs. What two windows both charge is counted twice,
so both records say it and neither calls itself exclusive.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from angelshare.energy.probes.process_tree import start_ticks


def registry() -> Path:
    """The machine's folder of open windows, writable by everyone like the folder it is in."""
    folder = Path(tempfile.gettempdir()) / "angelshare-windows"
    if not folder.exists():
        with contextlib.suppress(OSError):
            folder.mkdir()
            folder.chmod(0o1777)
    return folder


class Presence:
    """One window's entry, from its opening to its end."""

    def __init__(self, identity: str, rule: str, devices: list[str]) -> None:
        self.path = registry() / f"{identity}.jsonl"
        pid = os.getpid()
        self.entry: dict[str, Any] = {
            "id": identity,
            "rule": rule,
            "devices": devices,
            "pid": pid,
            "pid_start": start_ticks(pid),
        }
        self.met: list[dict[str, Any]] = []
        if devices:
            with contextlib.suppress(OSError):
                _append(self.path, self.entry)
                self.path.chmod(0o666)
                self.met = self._greet(set(devices))

    def _greet(self, devices: set[str]) -> list[dict[str, Any]]:
        met = []
        for path in self.path.parent.glob("*.jsonl"):
            other = _entries(path)
            if path == self.path or not other:
                continue
            if start_ticks(other[0]["pid"]) != other[0]["pid_start"]:
                with contextlib.suppress(OSError):
                    path.unlink()
                continue
            if devices & set(other[0]["devices"]):
                met.append(other[0])
                with contextlib.suppress(OSError):
                    _append(path, self.entry)
        return met

    def leave(self) -> list[dict[str, str]]:
        """Remove the entry; ``id`` and, in words, ``text`` of each window on the same devices."""
        others = [*self.met, *_entries(self.path)[1:]]
        with contextlib.suppress(OSError):
            self.path.unlink()
        mine = set(self.entry["devices"])
        found = {}
        for one in others:
            shared = ", ".join(sorted(mine & set(one["devices"])))
            text = f"{shared} also charged by window {one['id']} of rule {one['rule']}"
            found[text] = {"id": str(one["id"]), "text": text}
        return [found[text] for text in sorted(found)]


def _append(path: Path, entry: dict[str, Any]) -> None:
    with path.open("a") as stream:
        stream.write(json.dumps(entry) + "\n")


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError):
        return []
