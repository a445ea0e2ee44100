"""Publishing artifacts to another store and fetching them from one.

The other store is any fsspec address (a folder, a mounted share, ``s3://…``) with the same layout.
What travels with an artifact: its objects, receipts and manifest, and the records of all attempts,
so that the receiver's accounting shows the joules that the producer measured, labelled imported.

Order, in both directions: objects, attempts, receipts, manifest. A transfer that breaks off leaves
whole objects and no manifest; the next one goes on with what is missing. Every object's digest is
checked at the far end, by reading it there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import fsspec
from pydantic import ValidationError

from angelshare.errors import AngelshareError
from angelshare.files import publish_bytes, publish_json
from angelshare.store.artifacts import (
    Artifact,
    ArtifactStore,
    Manifest,
    StoredFile,
    to_json,
)
from angelshare.store.objects import writing

BLOCK_BYTES = 1 << 22
Say = Callable[[str], None]


@dataclass(slots=True)
class Transferred:
    """What a transfer moved."""

    objects: int = 0
    bytes: int = 0
    skipped: int = 0
    """Objects that were there already, with the right digest."""


class Remote:
    """A store at an fsspec address."""

    def __init__(self, url: str, **options: Any) -> None:
        """``options`` go to the file system (credentials, endpoint)."""
        self.url = url
        try:
            self.files, root = fsspec.core.url_to_fs(url, **options)
        except (ImportError, ValueError) as error:
            raise AngelshareError(f"{url} cannot be opened: {error}.") from error
        self.root = PurePosixPath(root)

    def path(self, *parts: str) -> str:
        """The address of a file, in the file system's own terms."""
        return str(self.root.joinpath(*parts))

    def has(self, file: StoredFile) -> bool:
        """Whether an object is there with the right size and digest: reads it there."""
        path = self.object(file)
        if not self.files.exists(path) or self.files.size(path) != file.bytes:
            return False
        hasher = hashlib.sha256()
        with self.files.open(path, "rb") as stream:
            while block := stream.read(BLOCK_BYTES):
                hasher.update(block)
        return hasher.hexdigest() == file.sha256

    def object(self, file: StoredFile) -> str:
        """Where an object lies."""
        return self.path("objects", file.sha256[:2], f"{file.sha256}.{file.suffix}")

    def write(self, path: str, content: bytes) -> None:
        """Write a small file."""
        self.files.makedirs(str(PurePosixPath(path).parent), exist_ok=True)
        self.files.pipe_file(path, content)

    def manifest(self, kind: str, key: str) -> Manifest | None:
        """The manifest of an artifact there, checked against its key; None if there is none.

        Raises:
            AngelshareError: when it is damaged or describes something else.
        """
        path = self.path(kind, key, "manifest.json")
        if not self.files.exists(path):
            return None
        try:
            manifest = Manifest.model_validate_json(self.files.cat_file(path))
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise AngelshareError(f"{self.url}: {path} is damaged: {problem}.") from error
        if not manifest.describes(kind, key):
            raise AngelshareError(f"{self.url}: {path} does not describe {kind}/{key}.")
        return manifest


def push(artifact: Artifact, remote: Remote, say: Say = lambda text: None) -> Transferred:
    """Publish a sealed artifact to ``remote``.

    Raises:
        AngelshareError: when the artifact is not whole here, or an object is not whole there after
            it was written.
    """
    manifest = artifact.manifest()
    done = Transferred()
    for receipt in manifest.parts:
        for file in receipt.files:
            if remote.has(file):
                done.skipped += 1
                continue
            source = artifact.verified(receipt, file)
            target = remote.object(file)
            remote.files.makedirs(str(PurePosixPath(target).parent), exist_ok=True)
            remote.files.put_file(str(source), target)
            if not remote.has(file):
                raise AngelshareError(
                    f"{remote.url}: {target} does not have its digest after it was written. "
                    "Push again; if it stays so, the far end alters what it stores."
                )
            done.objects += 1
            done.bytes += file.bytes
            say(f"{artifact} part {receipt.part}: {file.name}, {file.bytes:,} bytes")
    folder = (artifact.kind, artifact.key)
    for path in sorted(artifact.attempts.glob("*.json")):
        remote.write(remote.path(*folder, "attempts", path.name), path.read_bytes())
    for receipt in manifest.parts:
        path = artifact.receipt_path(receipt.part)
        remote.write(remote.path(*folder, "parts", path.name), path.read_bytes())
    remote.write(remote.path(*folder, "manifest.json"), artifact.manifest_path.read_bytes())
    return done


def pull(
    store: ArtifactStore, remote: Remote, kind: str, key: str, say: Say = lambda text: None
) -> Transferred:
    """Fetch an artifact from ``remote`` into ``store``.

    Raises:
        AngelshareError: when it is not there, is damaged there, or arrives altered.
    """
    manifest = remote.manifest(kind, key)
    if manifest is None:
        raise AngelshareError(f"{remote.url} has no {kind}/{key}.")
    artifact = store.artifact(kind, key)
    done = Transferred()
    with TemporaryDirectory(prefix="angelshare-") as scratch:
        for receipt in manifest.parts:
            for file in receipt.files:
                if store.objects.fault(file.sha256, file.suffix, file.bytes) is None:
                    done.skipped += 1
                    continue
                arrived = Path(scratch) / "object"
                remote.files.get_file(remote.object(file), str(arrived))
                _check(arrived, file, remote)
                with writing(store.root):
                    store.objects.put(arrived, file.suffix)
                done.objects += 1
                done.bytes += file.bytes
                say(f"{artifact} part {receipt.part}: {file.name}, {file.bytes:,} bytes")
        with writing(store.root):
            _pull_attempts(artifact, remote)
            for receipt in manifest.parts:
                publish_bytes(artifact.receipt_path(receipt.part), to_json(receipt))
            publish_bytes(artifact.manifest_path, to_json(manifest))
    return done


def _check(arrived: Path, file: StoredFile, remote: Remote) -> None:
    with arrived.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != file.sha256:
        raise AngelshareError(
            f"{remote.url}: the object {file.sha256} arrived with digest {found}. "
            "Pull again; if it stays so, run `angelshare verify` on that store."
        )


def _pull_attempts(artifact: Artifact, remote: Remote) -> None:
    """Bring the producer's records, each component labelled imported."""
    folder = remote.path(artifact.kind, artifact.key, "attempts")
    if not remote.files.exists(folder):
        return
    for path in remote.files.ls(folder, detail=False):
        name = PurePosixPath(path).name
        target = artifact.attempts / name
        if name.endswith(".json") and not target.exists():
            try:
                record = imported(json.loads(remote.files.cat_file(path)), remote.url)
            except (KeyError, TypeError, ValueError) as error:
                raise AngelshareError(
                    f"{remote.url}: {path} is no energy record ({error!r}), so what the artifact "
                    "cost is unknown. Ask its producer to push it again."
                ) from error
            publish_json(target, record)


def imported(record: dict[str, Any], origin: str) -> dict[str, Any]:
    """A producer's record as it stands in the receiver's store: figures kept, method `imported`."""
    components = [
        {**component, "method": "imported" if component["method"] != "none" else "none"}
        for component in record["components"]
    ]
    methods = ", ".join(f"{c['id']} {c['method']}" for c in record["components"])
    warning = {
        "code": "imported",
        "text": f"fetched from {origin}; measured there by {methods}; the power trace stayed there",
    }
    return {
        **record,
        "components": components,
        "warnings": [*record.get("warnings", []), warning],
    }
