"""Artifacts to send, and remotes of every kind to send them to."""

import json
from pathlib import Path

import fsspec

from angelshare.energy import EnergySettings, Job, window
from angelshare.recipes import recipe_key
from angelshare.store import remote as remotes
from angelshare.store.artifacts import ArtifactStore
from angelshare.store.remote import Remote

PARTS = 3


def make(folder, recipe, content, *, kind="corpus", parts=PARTS):
    """A sealed artifact with a real energy record for each part."""
    artifact = ArtifactStore(folder).artifact(kind, recipe_key(kind, recipe))
    for part in range(parts):
        name = f"{part:05d}"
        job = Job(
            rule="generate_corpus",
            stage="teacher_generation",
            role="teacher",
            sidecar=artifact.folder / "parts" / f"{name}.energy.json",
            attempts=artifact.attempts,
            wildcards={"kind": kind, "key": artifact.key, "part": name},
            gpus=0,
        )
        with window(job, EnergySettings()):
            source = folder.parent / "source"
            source.write_text(f"{content} {part}")
            artifact.commit(part, {"data.parquet": source}, inputs={})
    artifact.seal(recipe, parts)
    return artifact


def open_remote(kind, request, tmp_path, monkeypatch):
    if kind == "s3":
        return Remote(request.getfixturevalue("new_bucket")())
    if kind == "folder":
        return Remote(str(tmp_path / "shared"))
    if kind == "file":
        return Remote(f"file://{tmp_path}/shared")
    if kind == "moved":
        # A file server that is no object store: temporary names and moves.
        monkeypatch.setattr(remotes, "ATOMIC_PUT", frozenset())
    files = fsspec.filesystem("memory")
    if files.exists("/shared"):
        files.rm("/shared", recursive=True)
    return Remote("memory://shared")


def files_of(remote):
    return sorted(remote.files.find(str(remote.root)))


def put(remote, path, content):
    """Write where a hostile keeper could: read-only objects of a folder too."""
    if remote.folder is not None:
        Path(path).unlink(missing_ok=True)
    remote.files.pipe_file(path, content)


def edit_manifest(remote, artifact, edit):
    path = remote.path("corpus", artifact.key, "manifest.json")
    value = json.loads(remote.files.cat_file(path))
    edit(value)
    put(remote, path, json.dumps(value).encode())
