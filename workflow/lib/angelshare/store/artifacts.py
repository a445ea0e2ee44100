"""Artifacts: recipes made real, in parts, with receipts and a manifest.

On disk an artifact is ``<store>/<kind>/<key>/``:

    manifest.json      what the artifact is; written when every part has its receipt
    parts/00003.json   a part's receipt: which objects it is, what it was really made from
    attempts/          one record per attempt of every job that worked on it (append-only)
    consumers/         one file per student run that read it

Receipts and manifests are deterministic (no time, no host): equal work gives equal bytes. The DAG
tracks them and never the objects. Readers check every object's digest before they use it.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from angelshare.errors import AngelshareError
from angelshare.files import publish_bytes, publish_first, publish_json
from angelshare.recipes import recipe_key
from angelshare.store.consumers import Consumer
from angelshare.store.objects import ObjectStore, writing
from angelshare.store.provenance import Provenance
from angelshare.store.records import (
    FILE_NAMES,
    REPAIR,
    Manifest,
    Receipt,
    StoredFile,
    content_digest,
    load,
    to_json,
)

if TYPE_CHECKING:
    from angelshare.store.checks import Checks

_NAME = re.compile(r"([a-z][a-z_]{0,31})/([0-9a-f]{1,64})")


class ArtifactStore:
    """A store of artifacts at ``root``, shared by every run and team that points at it.

    ``layers`` are further stores that are read and never written. An artifact that one of them
    holds is used where it lies; what is new, and who read what, goes to ``root``.
    """

    def __init__(self, root: Path, layers: Sequence[Path] = ()) -> None:
        self.root = root
        self.objects = ObjectStore(root)
        self.layers = [ArtifactStore(layer) for layer in layers]

    def artifact(self, kind: str, key: str) -> Artifact:
        """The artifact of this kind and key, whether or not it exists yet.

        Raises:
            AngelshareError: when the two, which may come from a manifest, are no plain names.
        """
        if not _NAME.fullmatch(f"{kind}/{key}"):
            raise AngelshareError(f"{kind!r} and {key!r} are not the kind and key of an artifact.")
        own = Artifact(self, kind, key)
        if self.layers and not own.manifest_path.exists():
            for layer in self.layers:
                found = Artifact(layer, kind, key)
                if found.manifest_path.exists():
                    found.consumers_folders.append(own.consumers_folders[0])
                    return found
        return own

    def owns(self, kind: str, key: str) -> bool:
        """Whether the artifact belongs, or will belong, to this store and not to a layer."""
        return self.artifact(kind, key).store is self

    def artifacts(self) -> Iterator[Artifact]:
        """Every artifact that has a receipt or manifest, in order of kind and key."""
        for folder in sorted(self.root.glob("*/*/")):
            if folder.parent.name != "objects" and (
                any((folder / "parts").glob("*.json")) or (folder / "manifest.json").is_file()
            ):
                yield Artifact(self, folder.parent.name, folder.name)

    def foreign_consumers(
        self, team: str, artifacts: Iterable[tuple[str, str]]
    ) -> dict[str, list[str]]:
        """The consumers that other teams recorded, by artifact key; keys without any left out.

        This team's own runs are inputs of its accounting anyway; other teams' runs are not, and a
        change among them is what makes the tables stale.

        Args:
            artifacts: kind and key of each artifact of the study.
        """
        found = {
            key: sorted(c.id for c in self.artifact(kind, key).consumers() if c.team != team)
            for kind, key in artifacts
        }
        return {key: consumers for key, consumers in found.items() if consumers}


class Artifact:
    """One artifact of a store: reading, committing parts, sealing."""

    def __init__(self, store: ArtifactStore, kind: str, key: str) -> None:
        self.store = store
        self.kind = kind
        self.key = key
        self.folder = store.root / kind / key
        self.manifest_path = self.folder / "manifest.json"
        self.attempts = self.folder / "attempts"
        self.consumers_folders = [self.folder / "consumers"]
        """Where consumers are recorded; the last one takes new records."""

    def __str__(self) -> str:
        return f"{self.kind}/{self.key[:12]}"

    def receipt_path(self, part: int) -> Path:
        """Where the receipt of this part stands."""
        return self.folder / "parts" / f"{part:05d}.json"

    # -- making ---------------------------------------------------------------------------------

    def adopt(self, part: int) -> Receipt | None:
        """The part's receipt if the part is already here, its files touched; otherwise None.

        A job asks this before it works, so that a rerun nobody needed costs a moment. A damaged
        receipt, or one whose objects are gone, counts as absent: the part is made again.
        """
        path = self.receipt_path(part)
        try:
            receipt = load(Receipt, path)
        except AngelshareError:
            return None
        if (receipt.kind, receipt.key, receipt.part) != (self.kind, self.key, part):
            return None
        if not all(self.store.objects.present(f.sha256, f.suffix, f.bytes) for f in receipt.files):
            return None
        _touch(path)
        return receipt

    def commit(
        self,
        part: int,
        files: Mapping[str, Path],
        *,
        inputs: Mapping[str, str],
        input_keys: Mapping[str, str] | None = None,
        rows: int = 0,
        tokens: int = 0,
        provenance: Provenance | None = None,
    ) -> Receipt:
        """Store a part's files as objects, then publish its receipt: in that order, always.

        The first writer wins: where another job has committed this part meanwhile, its receipt
        stands and is returned.

        Args:
            files: name inside the artifact -> file that was made.
            inputs: role -> content digest of what the part was really made from.
            input_keys: role -> ``kind/key`` of that artifact.
        """
        names = FILE_NAMES.validate_python(sorted(files))
        with writing(self.store.root):
            stored = []
            for name in names:
                sha256, size = self.store.objects.put(files[name], name.rpartition(".")[2])
                stored.append(StoredFile(name=name, sha256=sha256, bytes=size))
            receipt = Receipt(
                kind=self.kind,
                key=self.key,
                part=part,
                files=stored,
                rows=rows,
                tokens=tokens,
                inputs=dict(inputs),
                input_keys=dict(input_keys or {}),
                provenance=provenance or Provenance(),
            )
            while not publish_first(self.receipt_path(part), to_json(receipt)):
                earlier = self.adopt(part)
                if earlier is not None:
                    return earlier
                self.receipt_path(part).unlink(missing_ok=True)
            return receipt

    def seal(self, recipe: Mapping[str, Any], parts: int) -> Manifest:
        """Publish the manifest over the receipts of all ``parts``.

        Raises:
            AngelshareError: when a receipt is missing or damaged, when the recipe is not the one
                of this key, or when two parts were made from different inputs.
        """
        if recipe_key(self.kind, recipe) != self.key:
            raise AngelshareError(
                f"{self.folder}: the recipe at hand has key {recipe_key(self.kind, recipe)}. "
                "The configuration changed while the workflow ran: start it again."
            )
        receipts = [load(Receipt, self.receipt_path(part)) for part in range(parts)]
        made_from = {json.dumps(receipt.inputs, sort_keys=True) for receipt in receipts}
        if len(made_from) > 1:
            raise AngelshareError(
                f"{self.folder}: its parts were made from different inputs "
                f"({' and '.join(sorted(made_from))}). {REPAIR}"
            )
        manifest = Manifest(
            kind=self.kind,
            key=self.key,
            recipe=dict(recipe),
            parts=receipts,
            rows=sum(receipt.rows for receipt in receipts),
            tokens=sum(receipt.tokens for receipt in receipts),
            bytes=sum(file.bytes for receipt in receipts for file in receipt.files),
            content_sha256=content_digest(receipts),
        )
        with writing(self.store.root):
            publish_bytes(self.manifest_path, to_json(manifest))
        return manifest

    # -- reading --------------------------------------------------------------------------------

    def manifest(self) -> Manifest:
        """The manifest, checked against the artifact's key and its own content digest.

        Raises:
            AngelshareError: when it is missing or damaged.
        """
        manifest = load(Manifest, self.manifest_path)
        if not manifest.describes(self.kind, self.key):
            raise AngelshareError(
                f"{self.manifest_path} does not describe {self.kind}/{self.key}. {REPAIR}"
            )
        return manifest

    def paths(self, checks: Checks | None = None) -> list[Path]:
        """The verified objects of a one-file-per-part artifact, in order of parts.

        With ``checks`` their digests are taken while the caller reads, who joins them before its
        result is published.
        """
        return [
            checks.path(self, receipt, file) if checks else self.verified(receipt, file)
            for receipt in self.manifest().parts
            for file in receipt.files
        ]

    def verified(self, receipt: Receipt, file: StoredFile) -> Path:
        """The path of an object after its digest was checked.

        Raises:
            AngelshareError: with the file, both digests and the command that repairs it.
        """
        fault = self.store.objects.fault(file.sha256, file.suffix, file.bytes)
        if fault:
            raise AngelshareError(
                f"{self.kind} {self.key}, part {receipt.part}, {file.name}: {fault}. {REPAIR}"
            )
        return self.store.objects.path(file.sha256, file.suffix)

    @contextmanager
    def as_folder(self, checks: Checks | None = None) -> Iterator[Path]:
        """A temporary folder in which the artifact's files have their own names (as links).

        ``checks`` as in `paths`.
        """
        with TemporaryDirectory(prefix="angelshare-") as name:
            folder = Path(name)
            for receipt in self.manifest().parts:
                for file in receipt.files:
                    found = (checks.path if checks else Artifact.verified)(self, receipt, file)
                    (folder / file.name).symlink_to(found.resolve())
            yield folder

    # -- consumers ------------------------------------------------------------------------------

    def add_consumer(self, consumer: Consumer) -> None:
        """Record that a student run read this artifact; once, however often the run is repeated.

        A run that was repeated because the content had changed says so in its record.
        """
        name = f"{consumer.id}.json"
        known = [folder / name for folder in self.consumers_folders if (folder / name).exists()]
        if known and (
            consumer.content_sha256 is None
            or load(Consumer, known[-1]).content_sha256 in (None, consumer.content_sha256)
        ):
            return
        folder = self.consumers_folders[-1]
        with writing(folder):
            publish_json(folder / name, consumer.model_dump())

    def consumers(self) -> list[Consumer]:
        """Every run, of every team, that read this artifact."""
        found = {
            path.name: path
            for folder in self.consumers_folders
            for path in sorted(folder.glob("*.json"))
        }
        return [load(Consumer, found[name]) for name in sorted(found)]


def _touch(path: Path) -> None:
    """Make a file young; one that is not ours to touch, in a shared or read-only store, stays."""
    try:
        os.utime(path)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
