"""What a remote must not be able to do to who reads it."""

import hashlib

import fsspec
import pytest
from transfers import edit_manifest, put

from angelshare.errors import AngelshareError
from angelshare.store import remote as remotes
from angelshare.store.remote import Remote
from angelshare.store.transfer import pull, push
from angelshare.store.verify import verify


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"answers X", "arrived with digest"),
        (b"answers", "has 7 bytes"),
        (b"answers 1" * 1000, "has 9,000 bytes"),
        (None, "is missing"),
    ],
)
def test_an_object_that_is_not_what_was_promised_is_refused(
    artifact, remote, there, content, message
):
    push(artifact, remote)
    file = artifact.manifest().parts[1].files[0]
    if content is None:
        remote.files.rm_file(remote.object(file))
    else:
        put(remote, remote.object(file), content)
    with pytest.raises(AngelshareError, match=message):
        pull(there, remote, "corpus", artifact.key)
    arrived = there.artifact("corpus", artifact.key)
    assert not arrived.manifest_path.exists()
    assert not arrived.receipt_path(1).exists()
    assert not list(there.root.glob("objects/.tmp-*"))
    assert verify(there) == []


def test_an_endless_object_is_not_read_to_its_end(artifact, there, monkeypatch):
    """One that lies about its size, as compressed transport can: no more than announced is read."""
    files = fsspec.filesystem("memory")
    if files.exists("/shared"):
        files.rm("/shared", recursive=True)
    remote = Remote("memory://shared")
    push(artifact, remote)
    file = artifact.manifest().parts[0].files[0]
    remote.files.pipe_file(remote.object(file), b"x" * 10_000_000)
    monkeypatch.setattr(remote.files, "size", lambda path: file.bytes)
    read = sum(len(block) for block in _until_refused(remote.blocks(file)))
    assert read <= file.bytes + 1


def _until_refused(blocks):
    with pytest.raises(AngelshareError, match="goes on"):
        yield from blocks


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "..", ".hidden", "a/b", "a\0b", "a" * 300]
)
def test_a_manifest_that_points_out_of_the_store_is_refused(artifact, there, tmp_path, name):
    remote = Remote(str(tmp_path / "shared"))
    push(artifact, remote)
    edit_manifest(remote, artifact, lambda value: value["parts"][0]["files"][0].update(name=name))
    with pytest.raises(AngelshareError, match="is damaged"):
        pull(there, remote, "corpus", artifact.key)
    assert not (there.root / "corpus").exists()


def _other_recipe(value):
    value["recipe"]["source"]["licence"] = "none"


def _other_part(value):
    value["parts"][0]["part"] = 1


def _other_digest(value):
    value["parts"][0]["files"][0]["sha256"] = hashlib.sha256(b"evil").hexdigest()


def _no_value(value):
    value["recipe"]["source"] = float("nan")


@pytest.mark.parametrize("edit", [_other_recipe, _other_part, _other_digest, _no_value])
def test_a_manifest_that_is_not_what_its_key_says_is_refused(artifact, remote, there, edit):
    push(artifact, remote)
    edit_manifest(remote, artifact, edit)
    with pytest.raises(AngelshareError, match=r"does not describe|is damaged"):
        pull(there, remote, "corpus", artifact.key)
    assert not (there.root / "corpus").exists()


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"parts": ' * 50_000, b"\xff\xfe", b""])
def test_what_is_no_manifest_is_refused(artifact, remote, there, content):
    push(artifact, remote)
    put(remote, remote.path("corpus", artifact.key, "manifest.json"), content)
    with pytest.raises(AngelshareError, match="is damaged"):
        pull(there, remote, "corpus", artifact.key)


def test_a_manifest_of_any_size_is_not_read_to_its_end(artifact, remote, there, monkeypatch):
    push(artifact, remote)
    monkeypatch.setattr(remotes, "RECORD_BYTES", 100)
    with pytest.raises(AngelshareError, match="is larger than 100 bytes"):
        pull(there, remote, "corpus", artifact.key)


@pytest.mark.parametrize(
    "content", [b"no JSON", b"[]", b"{}", b'{"components": [1]}', b"[" * 99_999]
)
def test_a_record_that_is_none_is_refused_before_the_manifest(artifact, remote, there, content):
    push(artifact, remote)
    name = next(iter(remote.attempts("corpus", artifact.key)))
    put(remote, remote.path("corpus", artifact.key, "attempts", name), content)
    with pytest.raises(AngelshareError, match="is no energy record"):
        pull(there, remote, "corpus", artifact.key)
    assert not there.artifact("corpus", artifact.key).manifest_path.exists()
