"""Collecting garbage without hurting anyone.

What is kept: every artifact that a registered team's configuration reaches, every pinned one, and
everything younger than a grace period. Bills and consumer records always stay: what a teacher's
work cost remains known after its bytes are gone, and counts again if the work is repeated.

Order of deletion: manifest, receipts, then objects that no receipt names any more. Objects are left
alone while any lease is alive, because a job stores its objects before its receipt. A lease whose
holder died is one of the leftovers.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from angelshare.errors import AngelshareError
from angelshare.files import publish_json, read_json
from angelshare.store.artifacts import Artifact, ArtifactStore, Receipt, load
from angelshare.store.leases import abandoned
from angelshare.store.verify import leftovers

DAY_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Garbage:
    """What a collection would take away."""

    artifacts: list[Artifact]
    """Unreached, unpinned, and older than the grace period."""
    objects: list[Path]
    """Named by no receipt that stays."""
    temporary: list[Path]
    """Half-made files and leases of killed jobs."""
    note: str = ""
    """Why something was left alone."""

    @property
    def bytes(self) -> int:
        """The bytes that would become free."""
        return sum(path.stat().st_size for path in [*self.objects, *self.temporary])


def register(
    store: ArtifactStore, team: str, folder: Path, artifacts: Iterable[tuple[str, str]]
) -> None:
    """Note what a team's configuration reaches, so that nobody's collection takes it away."""
    publish_json(
        _roots(store) / f"{team}.json",
        {
            "team": team,
            "folder": str(folder.absolute()),
            "utc": datetime.now(UTC).isoformat(timespec="seconds"),
            "artifacts": sorted([kind, key] for kind, key in artifacts),
        },
    )


def pin(artifact: Artifact, reason: str) -> None:
    """Keep an artifact whatever the configurations reach."""
    publish_json(_pin(artifact), {"reason": reason})


def unpin(artifact: Artifact) -> None:
    """Let an artifact go again.

    Raises:
        AngelshareError: when it is not pinned.
    """
    try:
        _pin(artifact).unlink()
    except FileNotFoundError:
        raise AngelshareError(f"{artifact} is not pinned.") from None


def find_garbage(store: ArtifactStore, grace_days: float) -> Garbage:
    """What nobody needs: a dry run of `collect`."""
    before_s = time.time() - grace_days * DAY_S
    reached = _reached(store)
    held, left = _leases(store)
    artifacts, named = [], set()
    for artifact in store.artifacts():
        kept = (
            (artifact.kind, artifact.key) in reached
            or _pin(artifact).exists()
            or _last_use_s(artifact) > before_s
            or any(lease.parent.parent == artifact.folder for lease in held)
        )
        if kept:
            named |= _named_objects(artifact)
        else:
            artifacts.append(artifact)
    unnamed = [
        path
        for path in sorted(store.objects.root.glob("??/*"))
        if path not in named and path.stat().st_mtime < before_s
    ]
    return Garbage(
        artifacts=artifacts,
        objects=[] if held else unnamed,
        temporary=[path for path in [*leftovers(store), *left] if path.stat().st_mtime < before_s],
        note="jobs hold leases, so no object is touched" if held else "",
    )


def collect(garbage: Garbage) -> None:
    """Take away what `find_garbage` found; bills and consumers stay."""
    for artifact in garbage.artifacts:
        artifact.manifest_path.unlink(missing_ok=True)
        for path in sorted((artifact.folder / "parts").glob("*.json")):
            path.unlink()
    for path in [*garbage.objects, *garbage.temporary]:
        path.unlink(missing_ok=True)


def _leases(store: ArtifactStore) -> tuple[list[Path], list[Path]]:
    """The leases that are held, and those that their holders left behind when they died."""
    held: list[Path] = []
    left: list[Path] = []
    for path in sorted(store.root.glob("*/*/leases/[0-9]*.json")):
        (left if abandoned(path) else held).append(path)
    return held, left


def _roots(store: ArtifactStore) -> Path:
    return store.root / "roots"


def _pin(artifact: Artifact) -> Path:
    return artifact.folder / "pin.json"


def _reached(store: ArtifactStore) -> set[tuple[str, str]]:
    return {
        (kind, key)
        for path in _roots(store).glob("*.json")
        for kind, key in read_json(path)["artifacts"]
    }


def _last_use_s(artifact: Artifact) -> float:
    """When the artifact was last made, adopted or read by a new consumer."""
    files = [
        artifact.manifest_path,
        *(artifact.folder / "parts").glob("*.json"),
        *artifact.consumers_folders[0].glob("*.json"),
    ]
    return max((path.stat().st_mtime for path in files if path.exists()), default=0.0)


def _named_objects(artifact: Artifact) -> set[Path]:
    """The objects that an artifact's receipts name; a damaged receipt keeps its artifact's own."""
    objects = artifact.store.objects
    receipts = [
        load(Receipt, path) for path in (artifact.folder / "parts").glob("[0-9]" * 5 + ".json")
    ]
    return {objects.path(f.sha256, f.suffix) for receipt in receipts for f in receipt.files}
