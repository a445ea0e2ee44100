"""Checking a store: every object against its name, every receipt and manifest against the recipe.

Repair takes away what cannot be trusted (the damaged object, the receipts that name it, a damaged
manifest), so that the next run of the workflow makes exactly those parts again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from angelshare.errors import AngelshareError
from angelshare.files import TEMPORARY_PREFIX
from angelshare.store.artifacts import Artifact, ArtifactStore, Receipt, load
from angelshare.store.journal import UNFINISHED
from angelshare.store.objects import writing


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something in the store that cannot be trusted."""

    artifact: Artifact
    part: int | None
    """The part it concerns; None for the artifact's manifest."""
    text: str
    remove: tuple[Path, ...]
    """What repair takes away, so that the next run makes it again."""

    def __str__(self) -> str:
        where = "manifest" if self.part is None else f"part {self.part}"
        folders = self.artifact.consumers_folders
        consumers = sum(1 for folder in folders for _ in folder.glob("*.json"))
        return (
            f"{self.artifact.kind} {self.artifact.key}, {where} "
            f"(read by {consumers} student run{'' if consumers == 1 else 's'}): {self.text}"
        )


def verify(
    store: ArtifactStore, progress: Callable[[int, int], None] = lambda done, of: None
) -> list[Fault]:
    """Read the whole store and list what is damaged or missing.

    Args:
        progress: called with the artifacts checked so far and their number.
    """
    artifacts = list(store.artifacts())
    faults: list[Fault] = []
    with ThreadPoolExecutor() as pool:
        for done, found in enumerate(pool.map(lambda a: list(_check(a)), artifacts), start=1):
            faults.extend(found)
            progress(done, len(artifacts))
    return faults


def _check(artifact: Artifact) -> Iterator[Fault]:
    sound: dict[int, Receipt] = {}
    for path in sorted((artifact.folder / "parts").glob("[0-9]" * 5 + ".json")):
        part = int(path.stem)
        try:
            receipt = load(Receipt, path)
            if (receipt.kind, receipt.key, receipt.part) != (artifact.kind, artifact.key, part):
                raise AngelshareError(f"{path} is the receipt of another part")
        except AngelshareError as error:
            yield Fault(artifact=artifact, part=part, text=str(error), remove=_damaged(path, error))
            continue
        sound[part] = receipt
        yield from _check_objects(artifact, receipt, path)
    yield from _check_manifest(artifact, sound)


def _check_objects(artifact: Artifact, receipt: Receipt, path: Path) -> Iterator[Fault]:
    objects = artifact.store.objects
    for file in receipt.files:
        fault = objects.fault(file.sha256, file.suffix, file.bytes)
        if fault:
            yield Fault(
                artifact=artifact,
                part=receipt.part,
                text=f"{file.name}: {fault}",
                remove=(objects.path(file.sha256, file.suffix), path) if fault.damaged else (),
            )


def _check_manifest(artifact: Artifact, sound: dict[int, Receipt]) -> Iterator[Fault]:
    """The manifest against its recipe and against the receipts that could be read."""
    path = artifact.manifest_path
    if not path.exists():
        return
    try:
        parts = artifact.manifest().parts
    except AngelshareError as error:
        yield Fault(artifact=artifact, part=None, text=str(error), remove=_damaged(path, error))
        return
    for receipt in parts:
        if not artifact.receipt_path(receipt.part).exists():
            text = "its receipt is missing; the next run of the workflow makes this part again"
            yield Fault(artifact=artifact, part=receipt.part, text=text, remove=())
        elif sound.get(receipt.part, receipt) != receipt:
            text = f"{path} and the receipt of part {receipt.part} disagree"
            yield Fault(artifact=artifact, part=None, text=text, remove=(path,))


def _damaged(path: Path, error: AngelshareError) -> tuple[Path, ...]:
    """What to take away: nothing where a disk or server failed, which is no proof of damage."""
    return () if isinstance(error.__cause__, OSError) else (path,)


def repair(faults: list[Fault]) -> int:
    """Take away everything the faults name; return how many files were removed."""
    removed = 0
    for fault in faults:
        with writing(fault.artifact.store.root):
            for path in filter(os.path.lexists, fault.remove):
                path.unlink()
                removed += 1
    return removed


def leftovers(store: ArtifactStore) -> list[Path]:
    """Temporary files that a killed job left behind, and what it finished of its part; never part
    of an artifact."""
    pieces = store.root.glob(f"*/*/{UNFINISHED}/*/*")
    return sorted({*store.root.rglob(f"{TEMPORARY_PREFIX}*"), *pieces})
