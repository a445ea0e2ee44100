"""Collecting garbage without hurting anyone.

What is kept: every artifact that a registered team's configuration reaches, every pinned one with
what it was made from, everything younger than a grace period, and what a live lease holds. Bills
and consumer records always stay: what a teacher's work cost remains known after its bytes are gone,
and counts again if the work is repeated.

Order of deletion: manifest, receipts, then objects that no receipt or manifest names any more. Each
artifact is looked at again just before it goes, and each file is renamed before it is deleted: if a
job has touched it meanwhile (adopting a part and storing the same bytes both do), it goes back.
Objects are left alone while any lease is alive, because a job stores its objects before its
receipt. A lease whose holder died is one of the leftovers.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from angelshare.errors import AngelshareError
from angelshare.files import TEMPORARY_PREFIX, publish_json
from angelshare.recipes import digest
from angelshare.settings import Settings
from angelshare.store.artifacts import Artifact, ArtifactStore
from angelshare.store.leases import abandoned
from angelshare.store.objects import writing
from angelshare.store.records import Key, Kind, Manifest, Receipt, load
from angelshare.store.verify import leftovers

DAY_S = 86_400.0
JOBS_AT_WORK = "jobs hold leases, so no object is touched"


class Root(Settings):
    """What one configuration of a team reaches."""

    team: str
    folder: str
    utc: str
    artifacts: list[tuple[Kind, Key]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Garbage:
    """What a collection would take away."""

    store: ArtifactStore
    before_s: float
    """What was used after this moment (seconds since the epoch) stays."""
    artifacts: list[Artifact]
    """Unreached, unpinned, and older than the grace period."""
    objects: list[Path]
    """Named by no receipt or manifest that stays."""
    temporary: list[Path]
    """Half-made files and leases of killed jobs."""
    note: str = ""
    """Why something was left alone."""

    @property
    def bytes(self) -> int:
        """The bytes that would become free."""
        return sum(_size(path) for path in [*self.objects, *self.temporary])


@dataclass(slots=True)
class Collected:
    """What a collection took away, and what it left alone after all."""

    bytes: int = 0
    spared: list[str] = field(default_factory=list)
    """Artifacts that came into use meanwhile, and why."""


def register(
    store: ArtifactStore,
    team: str,
    folder: Path,
    artifacts: Iterable[tuple[str, str]],
    configs: Sequence[str] = (),
) -> None:
    """Note what a team's configuration reaches, so that nobody's collection takes it away.

    Each checkout and each set of configuration files of a team stands for itself: running another
    study unregisters nothing.

    Args:
        configs: the configuration files, as they were named.
    """
    home = str(folder.absolute())
    name = digest("angelshare/root", {"folder": home, "configs": list(configs)})[:12]
    publish_json(
        _roots(store) / f"{team}-{name}.json",
        Root(
            team=team,
            folder=home,
            utc=datetime.now(UTC).isoformat(timespec="seconds"),
            artifacts=sorted(artifacts),
        ).model_dump(mode="json"),
    )


def roots(store: ArtifactStore) -> dict[Path, Root]:
    """Every registered configuration, by its file.

    Raises:
        AngelshareError: when one is damaged: what it reaches is unknown.
    """
    found = {}
    for path in sorted(_roots(store).glob("*.json")):
        try:
            found[path] = load(Root, path)
        except AngelshareError as error:
            raise AngelshareError(
                f"{path} is damaged, so nobody knows what its team needs and nothing is collected. "
                "Remove this file once that team has run its workflow again, which registers it."
            ) from error
    return found


def forget(store: ArtifactStore, team: str) -> int:
    """Unregister all configurations of a team that is gone; return how many.

    Raises:
        AngelshareError: when the team has none.
    """
    found = roots(store)
    mine = [path for path, root in found.items() if root.team == team]
    if not mine:
        known = ", ".join(sorted({root.team for root in found.values()})) or "none"
        raise AngelshareError(f"no team {team} is registered in {store.root}; known are: {known}.")
    for path in mine:
        path.unlink()
    return len(mine)


def pin(artifact: Artifact, reason: str) -> None:
    """Keep an artifact, and what it was made from, whatever the configurations reach."""
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
    """What nobody needs: a dry run of `collect`.

    Raises:
        AngelshareError: when a root, receipt or manifest is damaged: what it needs is unknown.
    """
    before_s = time.time() - grace_days * DAY_S
    reached = _reached(store)
    held, left = _leases(store)
    artifacts, named = [], set()
    for artifact in store.artifacts():
        if (artifact.kind, artifact.key) in reached or _in_use(artifact, before_s):
            named |= _named_objects(artifact)
        else:
            artifacts.append(artifact)
    unnamed = [
        path
        for path in sorted(store.objects.root.glob("??/*"))
        if path not in named and _changed_s(path) < before_s
    ]
    return Garbage(
        store=store,
        before_s=before_s,
        artifacts=artifacts,
        objects=[] if held else unnamed,
        temporary=[path for path in [*leftovers(store), *left] if _changed_s(path) < before_s],
        note=JOBS_AT_WORK if held else "",
    )


def collect(garbage: Garbage) -> Collected:
    """Take away what `find_garbage` found and still nobody needs; bills and consumers stay.

    Raises:
        AngelshareError: when a file may not be deleted; what went before it is gone.
    """
    done, store = Collected(), garbage.store
    with writing(store.root):
        reached = _reached(store)
        for artifact in garbage.artifacts:
            reason = "a configuration reaches it now"
            if (artifact.kind, artifact.key) not in reached:
                reason = _in_use(artifact, garbage.before_s) or _take_artifact(artifact, garbage)
            if reason:
                done.spared.append(f"{artifact}: {reason}")
        # Once more, over all that is left: a new artifact may be made of old bytes.
        named = {path for artifact in store.artifacts() for path in _named_objects(artifact)}
        objects = [path for path in garbage.objects if path not in named]
        if objects and _leases(store)[0]:
            # A job that begins after this moment makes young what it needs.
            done.spared.append(JOBS_AT_WORK)
            objects = []
        for path in [*objects, *garbage.temporary]:
            done.bytes += _take(path, garbage.before_s) or 0
    return done


def last_use_s(artifact: Artifact) -> float:
    """When the artifact was last made, adopted or read by a new consumer, in seconds since the
    epoch; 0 for one that never was."""
    files = [
        artifact.manifest_path,
        *(artifact.folder / "parts").glob("*.json"),
        *(path for folder in artifact.consumers_folders for path in folder.glob("*.json")),
    ]
    return max((_changed_s(path) for path in files if path.exists()), default=0.0)


def _in_use(artifact: Artifact, before_s: float) -> str:
    """Why an artifact stays that no configuration reaches; empty where nothing speaks for it."""
    if _pin(artifact).exists():
        return "it is pinned"
    if last_use_s(artifact) > before_s:
        return "it was used within the grace period"
    if any(not abandoned(lease) for lease in (artifact.folder / "leases").glob("[0-9]*.json")):
        return "a job is working on it"
    return ""


def _take_artifact(artifact: Artifact, garbage: Garbage) -> str:
    """Delete the manifest, then the receipts; stop, and say so, at one that was just used."""
    for path in [artifact.manifest_path, *sorted((artifact.folder / "parts").glob("*.json"))]:
        if path.exists() and _take(path, garbage.before_s) is None:
            return "it came into use while it was being collected"
    return ""


def _take(path: Path, before_s: float) -> int | None:
    """Delete a file that nobody has touched since; return its bytes.

    None where somebody has: it is put back.
    """
    aside = path.with_name(f"{TEMPORARY_PREFIX}gc-{secrets.token_hex(6)}")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return 0
    if _changed_s(aside) > before_s:
        try:
            os.link(aside, path)
        except PermissionError:
            # Some systems let nobody link another user's file.
            os.rename(aside, path)
        except FileExistsError:
            # Whoever needed it has made it again meanwhile.
            pass
        aside.unlink(missing_ok=True)
        return None
    freed = _size(aside)
    aside.unlink()
    return freed


def _size(path: Path) -> int:
    """The bytes that deleting a file frees."""
    with suppress(FileNotFoundError):
        return path.lstat().st_size
    return 0


def _changed_s(path: Path) -> float:
    """When a file was last written or touched; a file that is gone just now counts as young."""
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return time.time()


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
    """What a configuration reaches, and what pinned artifacts stand on."""
    found = {artifact for root in roots(store).values() for artifact in root.artifacts}
    for path in store.root.glob("*/*/pin.json"):
        found.update(_closure(store, path.parent.parent.name, path.parent.name))
    return found


def _closure(store: ArtifactStore, kind: str, key: str) -> Iterator[tuple[str, str]]:
    """An artifact and what it was made from, as far as manifests tell."""
    yield kind, key
    artifact = store.artifact(kind, key)
    if artifact.manifest_path.exists():
        for source in artifact.manifest().recipe.get("inputs", {}).values():
            yield from _closure(store, source["kind"], source["key"])


def _named_objects(artifact: Artifact) -> set[Path]:
    """The objects that an artifact's receipts and manifest name."""
    objects = artifact.store.objects
    receipts = [
        load(Receipt, path) for path in (artifact.folder / "parts").glob("[0-9]" * 5 + ".json")
    ]
    if artifact.manifest_path.exists():
        receipts += load(Manifest, artifact.manifest_path).parts
    return {objects.path(f.sha256, f.suffix) for receipt in receipts for f in receipt.files}
