"""Publishing artifacts to another store and fetching them from one.

What travels with an artifact: its objects, receipts, manifest, and what it cost. The records of all
attempts arrive labelled imported, so that the receiver's accounting shows the joules that the
producer measured; so do the records of what it was made from, where the receiver has none of its
own: an input that nobody here needs is not fetched, and its bill is not lost.

Order, in both directions: objects, then records, then the receipt that names them; the manifest
last. A transfer that breaks off leaves whole objects and no manifest, and the next one goes on with
what is missing. Objects travel several at a time, block by block, and their digests are checked at
the far end.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from pydantic import ValidationError

from angelshare.energy.sidecar import Record
from angelshare.errors import AngelshareError
from angelshare.files import publish_bytes, publish_first, publish_json
from angelshare.store.artifacts import Artifact, ArtifactStore
from angelshare.store.leases import single_flight
from angelshare.store.objects import writing
from angelshare.store.records import Manifest, Receipt, StoredFile, to_json
from angelshare.store.remote import NoAnswer, Remote

WORKERS = 8
"""Objects on their way at once."""

Say = Callable[[str], None]
Name = tuple[str, str]
"""Kind and key of an artifact."""


def _nothing(text: str) -> None:
    """Say nothing."""


@dataclass(slots=True)
class Transferred:
    """What a transfer moved."""

    objects: int = 0
    bytes: int = 0
    skipped: int = 0
    """Objects that were there already, with the right digest."""
    _lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    def moved(self, file: StoredFile) -> None:
        """Count an object that travelled."""
        with self._lock:
            self.objects += 1
            self.bytes += file.bytes

    def was_there(self, objects: int = 1) -> None:
        """Count objects that did not have to travel."""
        with self._lock:
            self.skipped += objects


# -- push ---------------------------------------------------------------------------------------


def push(artifact: Artifact, remote: Remote, say: Say = _nothing) -> Transferred:
    """Publish a sealed artifact to ``remote``.

    Where the remote has the artifact already, only objects that are damaged there are sent: what
    it cost stays what its first producer measured.

    Raises:
        AngelshareError: when the artifact is not whole here, when the remote holds it with other
            content or does not answer, or when an object is not whole there after it was written.
    """
    manifest = artifact.manifest()
    done = Transferred()
    there = _already_there(artifact, manifest, remote)
    # Found out before the workers ask for it all at once.
    _ = remote.answers_for_content

    def send(part: tuple[Receipt, StoredFile]) -> None:
        _push_object(artifact, *part, remote, done, say)

    with _workers() as pool:
        _all(pool, send, [(one, file) for one in manifest.parts for file in one.files])
    if there:
        return done
    _push_bills(artifact, remote)
    for receipt in manifest.parts:
        path = artifact.receipt_path(receipt.part)
        remote.write(_in(remote, artifact, "parts", path.name), path.read_bytes())
    remote.write(_in(remote, artifact, "manifest.json"), artifact.manifest_path.read_bytes())
    return done


def _already_there(artifact: Artifact, manifest: Manifest, remote: Remote) -> bool:
    try:
        found = remote.manifest(artifact.kind, artifact.key)
    except NoAnswer:
        raise
    except AngelshareError:
        return False  # damaged: ours takes its place
    if found is None:
        return False
    if found[0].content_sha256 != manifest.content_sha256:
        raise AngelshareError(
            f"{remote.url} holds {artifact} with other content: two teams made it apart. The first "
            "one stays; `angelshare pull` takes theirs into a store that has none."
        )
    return True


def _push_object(
    artifact: Artifact,
    receipt: Receipt,
    file: StoredFile,
    remote: Remote,
    done: Transferred,
    say: Say,
) -> None:
    if remote.has(file):
        done.was_there()
        return
    source = artifact.store.objects.path(file.sha256, file.suffix)
    try:
        remote.put(source, file)
    except (AngelshareError, OSError):
        # Which end is at fault? One that is damaged here is said to be.
        artifact.verified(receipt, file)
        raise
    done.moved(file)
    say(f"{artifact} part {receipt.part}: {file.name}, {file.bytes:,} bytes")


def _push_bills(artifact: Artifact, remote: Remote) -> None:
    """Send the records of what the artifact cost, and of what it stands on, as far as is known."""
    for one in _closure(artifact):
        there = set(remote.attempts(one.kind, one.key))
        if one is not artifact and there:
            continue
        for path in sorted(one.attempts.glob("*.json")):
            if path.name not in there:
                content = path.read_bytes()
                if _record(content, str(path)).record.status != "running":
                    remote.write(_in(remote, one, "attempts", path.name), content)
    for path in [
        *(artifact.folder / "parts").glob("*.energy.json"),
        artifact.folder / "energy.json",
    ]:
        if path.exists():
            name = path.relative_to(artifact.folder).parts
            remote.write(_in(remote, artifact, *name), path.read_bytes())


def _closure(artifact: Artifact) -> Iterator[Artifact]:
    """The artifact and what it was made from, as far as manifests tell, each once."""
    seen: set[Name] = set()
    todo = [artifact]
    while todo:
        one = todo.pop()
        if (one.kind, one.key) in seen:
            continue
        seen.add((one.kind, one.key))
        yield one
        if one.manifest_path.exists():
            todo.extend(one.store.artifact(*name) for name in _inputs(one.manifest()))


def _inputs(manifest: Manifest) -> list[Name]:
    """Kind and key of what an artifact was made from; from elsewhere, so nothing is presumed."""
    inputs = manifest.recipe.get("inputs")
    named = inputs.values() if isinstance(inputs, Mapping) else ()
    return [
        (str(one["kind"]), str(one["key"]))
        for one in named
        if isinstance(one, Mapping) and {"kind", "key"} <= one.keys()
    ]


def _in(remote: Remote, artifact: Artifact, *parts: str) -> str:
    return remote.artifact(artifact.kind, artifact.key, *parts)


# -- pull ---------------------------------------------------------------------------------------


def pull(
    store: ArtifactStore,
    remote: Remote,
    kind: str,
    key: str,
    say: Say = _nothing,
    upstream: Iterable[Name] = (),
) -> Transferred:
    """Fetch an artifact from ``remote`` into ``store``.

    Each part is fetched under its lease: another job that fetches or makes it is waited for, and
    its result adopted.

    Args:
        upstream: kind and key of what the artifact stands on; the records of what that cost are
            fetched where this store has none.

    Raises:
        AngelshareError: when it is not there, is damaged there, arrives altered, does not fit on
            the disk, or when the remote does not answer.
    """
    done = Transferred()
    found = remote.manifest(kind, key)
    if found is None:
        raise AngelshareError(f"{remote.url} has no {kind}/{key}.")
    manifest, content = found
    artifact = store.artifact(kind, key)
    if artifact.store is not store:
        return done  # a layer has it
    _check_space(artifact, manifest)
    records = _Imported(remote, kind, key)
    with _workers() as parts, _workers() as files:

        def fetch(receipt: Receipt) -> None:
            with single_flight(artifact, receipt.part, say) as adopted:
                if adopted:
                    done.was_there(len(adopted.files))
                else:
                    _fetch_part(artifact, receipt, remote, records, files, done, say)

        _all(parts, fetch, manifest.parts)
    with writing(store.root):
        for name in upstream:
            _pull_bill(store.artifact(*name), remote)
        here = [artifact.adopt(receipt.part) for receipt in manifest.parts]
        if here == manifest.parts:
            _pull_sidecar(artifact, remote, "energy.json")
            publish_bytes(artifact.manifest_path, content)
        else:
            # Some parts were made here meanwhile, from the same recipe.
            artifact.seal(manifest.recipe, len(manifest.parts))
    return done


def _check_space(artifact: Artifact, manifest: Manifest) -> None:
    objects = artifact.store.objects
    missing = sum(
        {
            file.sha256: file.bytes
            for receipt in manifest.parts
            for file in receipt.files
            if not objects.present(file.sha256, file.suffix, file.bytes)
        }.values()
    )
    nearest = artifact.store.root.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    free = shutil.disk_usage(nearest).free
    if missing > free:
        raise AngelshareError(
            f"{artifact} needs {missing:,} bytes in {artifact.store.root}, {free:,} are free. Free "
            "space there (`angelshare gc` says what nobody needs), then try again."
        )


def _fetch_part(
    artifact: Artifact,
    receipt: Receipt,
    remote: Remote,
    records: _Imported,
    files: ThreadPoolExecutor,
    done: Transferred,
    say: Say,
) -> None:
    objects = artifact.store.objects

    def fetch(file: StoredFile) -> None:
        if objects.fault(file.sha256, file.suffix, file.bytes) is None:
            done.was_there()
            return
        with writing(artifact.store.root):
            try:
                objects.receive(remote.blocks(file), file.sha256, file.suffix)
            except AngelshareError as error:
                raise AngelshareError(
                    f"{remote.url}: {artifact} part {receipt.part}, {file.name}: {error}. Nothing "
                    "of it was kept. Try again; if it stays so, its keeper runs `angelshare "
                    "verify --repair` on that store and pushes the artifact again."
                ) from error
        done.moved(file)
        say(f"{artifact} part {receipt.part}: {file.name}, {file.bytes:,} bytes")

    _all(files, fetch, receipt.files)
    path = artifact.receipt_path(receipt.part)
    with writing(artifact.store.root):
        records.publish(artifact, receipt.part)
        _pull_sidecar(artifact, remote, "parts", f"{receipt.part:05d}.energy.json")
        if not publish_first(path, to_json(receipt)):
            # Nobody else holds the lease, so what stands there is no receipt.
            publish_bytes(path, to_json(receipt))


# -- what it cost -------------------------------------------------------------------------------


class _Imported:
    """The producer's records of an artifact's attempts, each part's apart from those of all."""

    def __init__(self, remote: Remote, kind: str, key: str) -> None:
        self._by_part: dict[str | None, dict[str, dict[str, Any]]] = {}
        for name, content in remote.attempts(kind, key).items():
            where = f"{remote.url}: {kind}/{key}/attempts/{name}"
            part = (_record(content, where).record.wildcards or {}).get("part")
            record = imported(json.loads(content), remote.url)
            self._by_part.setdefault(part, {})[name] = record

    def publish(self, artifact: Artifact, part: int | None = None) -> None:
        """Bring the records of a part, or of all parts, and those that are no part's alone."""
        wanted = list(self._by_part) if part is None else [None, f"{part:05d}"]
        for one in wanted:
            for name, record in self._by_part.get(one, {}).items():
                if not (artifact.attempts / name).exists():
                    publish_json(artifact.attempts / name, record)


def _pull_bill(artifact: Artifact, remote: Remote) -> None:
    """Bring what an input cost, where nothing is known of it here."""
    if not artifact.manifest_path.exists() and not any(artifact.attempts.glob("*.json")):
        _Imported(remote, artifact.kind, artifact.key).publish(artifact)


def _pull_sidecar(artifact: Artifact, remote: Remote, *parts: str) -> None:
    path = remote.artifact(artifact.kind, artifact.key, *parts)
    content = remote.read(path)
    if content is not None:
        _record(content, f"{remote.url}: {path}")
        record = imported(json.loads(content), remote.url)
        publish_json(artifact.folder.joinpath(*parts), record)


def _record(content: bytes, where: str) -> Record:
    try:
        return Record.model_validate(json.loads(content))
    except (ValidationError, ValueError, RecursionError) as error:
        problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise AngelshareError(
            f"{where} is no energy record ({problem}), so what the artifact cost is unknown. "
            "Ask its producer to push it again."
        ) from error


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
        "warnings": [*(record.get("warnings") or []), warning],
    }


# -- several at a time --------------------------------------------------------------------------


@contextmanager
def _workers() -> Iterator[ThreadPoolExecutor]:
    """A pool that forgets what it has not begun when the body fails."""
    pool = ThreadPoolExecutor(WORKERS)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _all(pool: ThreadPoolExecutor, work: Callable[[Any], None], items: Iterable[Any]) -> None:
    """Do all of it; the first failure ends it, what is under way excepted."""
    futures = [pool.submit(work, item) for item in items]
    for future in futures:
        future.result()
