"""Checking a store: every object against its name, every receipt and manifest against the recipe,
every input against what parts were made from, every energy record against its schema.

Repair takes away what cannot be trusted (the damaged object, the receipts that name it, a damaged
manifest, the receipts of what was made from a former input), so that the next run of the workflow
makes exactly those parts again. Records of joules and of consumers cannot be made again: a damaged
one is set aside under another name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from pydantic import ValidationError

from angelshare.energy.attempts import validate_sidecar
from angelshare.errors import AngelshareError
from angelshare.files import TEMPORARY_PREFIX
from angelshare.store.artifacts import Artifact, ArtifactStore
from angelshare.store.changes import Contents
from angelshare.store.consumers import Consumer
from angelshare.store.journal import UNFINISHED
from angelshare.store.objects import writing
from angelshare.store.records import Manifest, Receipt, load

Progress = Callable[[int, int], None]
"""Takes the bytes checked so far and those there are."""

BATCH_BYTES = 8 << 20
DAMAGED = ".damaged"
"""What a record of joules or of a consumer that cannot be read is renamed to end in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something in the store that cannot be trusted."""

    artifact: Artifact
    part: int | None
    """The part it concerns; None for the artifact as a whole."""
    text: str
    remove: tuple[Path, ...] = ()
    """What repair takes away, so that the next run makes it again."""
    set_aside: tuple[Path, ...] = ()
    """What repair renames: it cannot be made again."""

    def __str__(self) -> str:
        where = "manifest" if self.part is None else f"part {self.part}"
        return (
            f"{self.artifact.kind} {self.artifact.key}, {where} ({readers(self.artifact)}): "
            f"{self.text}"
        )


@dataclass(slots=True)
class _Contents:
    """What the records of one artifact say, as far as they can be read."""

    artifact: Artifact
    receipts: dict[int, Receipt] = field(default_factory=dict)
    manifest: Manifest | None = None
    faults: list[Fault] = field(default_factory=list)


def verify(store: ArtifactStore, progress: Progress = lambda done, of: None) -> list[Fault]:
    """Read the whole store and list what is damaged, missing or made from former inputs.

    Records first, then the objects they name, each object once and several at a time, in the order
    in which they lie on disk.
    """
    artifacts = list(store.artifacts())
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(_read_records, artifacts))
        contents = Contents(store)
        for one in found:
            one.faults.extend(_changed(one, contents))
        damaged = _check_objects(pool, found, progress)
    for one in found:
        for part, receipt in one.receipts.items():
            for file in receipt.files:
                fault = damaged.get((file.sha256, file.suffix, file.bytes))
                if fault is not None:
                    path = store.objects.path(file.sha256, file.suffix)
                    text, proven = fault
                    remove = (path, one.artifact.receipt_path(part)) if proven else ()
                    one.faults.append(
                        Fault(
                            artifact=one.artifact,
                            part=part,
                            text=f"{file.name}: {text}",
                            remove=remove,
                        )
                    )
    return [fault for one in found for fault in one.faults]


def _read_records(artifact: Artifact) -> _Contents:
    """Receipts, manifest, energy records and consumers of an artifact; no object is read."""
    found = _Contents(artifact)
    for path in sorted((artifact.folder / "parts").glob("[0-9]" * 5 + ".json")):
        part = int(path.stem)
        try:
            receipt = load(Receipt, path)
            if (receipt.kind, receipt.key, receipt.part) != (artifact.kind, artifact.key, part):
                raise AngelshareError(f"{path} is the receipt of another part")
        except AngelshareError as error:
            remove = _damaged(path, error)
            found.faults.append(Fault(artifact=artifact, part=part, text=str(error), remove=remove))
        else:
            found.receipts[part] = receipt
    found.faults.extend(_check_manifest(found))
    found.faults.extend(_check_sidecars(artifact))
    found.faults.extend(_check_consumers(artifact))
    return found


def _check_manifest(found: _Contents) -> Iterator[Fault]:
    """The manifest against its recipe and against the receipts that could be read."""
    artifact, path = found.artifact, found.artifact.manifest_path
    if not path.exists():
        return
    try:
        found.manifest = artifact.manifest()
    except AngelshareError as error:
        yield Fault(artifact=artifact, part=None, text=str(error), remove=_damaged(path, error))
        return
    for receipt in found.manifest.parts:
        if not artifact.receipt_path(receipt.part).exists():
            text = "its receipt is missing; the next run of the workflow makes this part again"
            yield Fault(artifact=artifact, part=receipt.part, text=text)
        elif found.receipts.get(receipt.part, receipt) != receipt:
            text = f"{path} and the receipt of part {receipt.part} disagree"
            yield Fault(artifact=artifact, part=None, text=text, remove=(path,))


def _check_sidecars(artifact: Artifact) -> Iterator[Fault]:
    """Energy records against their schema: those of all attempts, and the declared ones."""
    declared = [artifact.folder / "energy.json", *(artifact.folder / "parts").glob("*.energy.json")]
    for path in sorted([*artifact.attempts.glob("*.json"), *filter(Path.exists, declared)]):
        try:
            validate_sidecar(path)
        except AngelshareError as error:
            attempt = path.parent == artifact.attempts
            unreadable = isinstance(error.__cause__, OSError)
            part = path.name.partition(".")[0]
            yield Fault(
                artifact=artifact,
                part=int(part) if part.isdecimal() and not attempt else None,
                text=str(error),
                remove=() if attempt or unreadable else (path,),
                set_aside=(path,) if attempt and not unreadable else (),
            )


def _check_consumers(artifact: Artifact) -> Iterator[Fault]:
    for path in _consumer_files(artifact):
        try:
            load(Consumer, path)
        except AngelshareError as error:
            text = f"{path} is no consumer record: who read this is not known from it"
            aside = _damaged(path, error)
            yield Fault(artifact=artifact, part=None, text=text, set_aside=aside)


def _changed(found: _Contents, contents: Contents) -> Iterator[Fault]:
    """Parts that were made from what an input no longer is; repair lets them be made again."""
    recipe = found.manifest.recipe if found.manifest else {}
    for part, receipt in found.receipts.items():
        for change in contents.changed(receipt, recipe):
            yield Fault(
                artifact=found.artifact,
                part=part,
                text=str(change),
                remove=(found.artifact.receipt_path(part), found.artifact.manifest_path),
            )


Object = tuple[str, str, int]


def _check_objects(
    pool: ThreadPoolExecutor, found: Iterable[_Contents], progress: Progress
) -> dict[Object, tuple[str, bool]]:
    """Why objects cannot be trusted, and whether that proves them damaged."""
    wanted: dict[Object, _Contents] = {}
    for one in found:
        for receipt in one.receipts.values():
            for file in receipt.files:
                wanted.setdefault((file.sha256, file.suffix, file.bytes), one)
    whole = sum(size for _, _, size in wanted)
    done, faults = 0, {}
    progress(0, whole)
    for batch, faulty in pool.map(
        lambda batch: (batch, _check_batch(batch, wanted)), _batches(sorted(wanted))
    ):
        faults.update(faulty)
        done += sum(size for _, _, size in batch)
        progress(done, whole)
    return faults


def _batches(objects: Iterable[Object]) -> Iterator[list[Object]]:
    """Objects by the eight mebibyte: small ones together, a large one alone."""
    begun = 0

    def number(one: Object) -> int:
        nonlocal begun
        begun += one[2] + 4096
        return begun // BATCH_BYTES

    for _, batch in groupby(objects, key=number):
        yield list(batch)


def _check_batch(
    batch: Iterable[Object], wanted: dict[Object, _Contents]
) -> dict[Object, tuple[str, bool]]:
    faults = {}
    for one in batch:
        fault = wanted[one].artifact.store.objects.fault(*one)
        if fault:
            faults[one] = (str(fault), fault.damaged)
    return faults


def _damaged(path: Path, error: AngelshareError) -> tuple[Path, ...]:
    """What to take away: nothing where a disk or server failed, which is no proof of damage."""
    return () if isinstance(error.__cause__, OSError) else (path,)


def readers(artifact: Artifact) -> str:
    """Which student runs of which teams read an artifact, in words."""
    teams: dict[str, list[str]] = {}
    for path in _consumer_files(artifact):
        try:
            consumer = Consumer.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            continue
        teams.setdefault(consumer.team, []).append(consumer.run)
    if not teams:
        return "read by no student run"
    named = (f"{', '.join(sorted(runs))} of {team}" for team, runs in sorted(teams.items()))
    return f"read by {'; '.join(named)}"


def _consumer_files(artifact: Artifact) -> list[Path]:
    return sorted(path for folder in artifact.consumers_folders for path in folder.glob("*.json"))


def repair(faults: list[Fault]) -> int:
    """Take away or set aside everything the faults name; return how many files these were."""
    mended = 0
    for fault in faults:
        with writing(fault.artifact.store.root):
            for path in filter(os.path.lexists, fault.remove):
                path.unlink()
                mended += 1
            for path in filter(os.path.lexists, fault.set_aside):
                path.rename(path.with_name(path.name + DAMAGED))
                mended += 1
    return mended


def leftovers(store: ArtifactStore) -> list[Path]:
    """Temporary files that a killed job left behind, and what it finished of its part; never part
    of an artifact."""
    pieces = store.root.glob(f"*/*/{UNFINISHED}/*/*")
    return sorted({*store.root.rglob(f"{TEMPORARY_PREFIX}*"), *pieces})
