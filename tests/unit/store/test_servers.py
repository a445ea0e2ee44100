"""A real S3 server: what it is asked, what it alters, what a transfer holds in memory."""

import hashlib
import logging
import multiprocessing
import os
import re
import resource

import pytest
from transfers import PARTS, files_of

from angelshare.errors import AngelshareError
from angelshare.recipes import make_recipe, recipe_key
from angelshare.store import remote as remotes
from angelshare.store.artifacts import ArtifactStore
from angelshare.store.remote import Remote
from angelshare.store.transfer import pull, push


def requests_for_objects(caplog, method):
    """How many requests of this kind the server granted that concern an object."""
    pattern = re.compile(rf"\"{method} /\S+/objects/../[0-9a-f]{{64}}\.parquet")
    return sum(bool(pattern.search(record.getMessage())) for record in caplog.records)


def _checking(monkeypatch):
    """Make the server refuse what does not have the declared sha256, as S3 itself does."""
    import base64

    from moto.core.exceptions import ServiceException
    from moto.s3 import responses

    class BadDigest(responses.S3ClientError):
        code = 400

        def __init__(self):
            super().__init__("BadDigest", "The SHA256 you specified did not match")

    assert issubclass(BadDigest, ServiceException)
    original = responses.S3Response._get_checksum

    def checked(self, response_headers):
        algorithm, value = original(self, response_headers)
        found = base64.b64encode(hashlib.sha256(self.body or b"").digest()).decode()
        if algorithm == "SHA256" and value != found:
            raise BadDigest
        return algorithm, value

    monkeypatch.setattr(responses.S3Response, "_get_checksum", checked)


def test_a_server_that_checks_digests_is_asked_for_them_alone(
    new_bucket, artifact, monkeypatch, caplog
):
    _checking(monkeypatch)
    remote = Remote(new_bucket())
    assert remote.answers_for_content
    with caplog.at_level(logging.INFO, logger="werkzeug"):
        push(artifact, remote)
        push(artifact, remote)
    assert requests_for_objects(caplog, "PUT") == PARTS
    assert requests_for_objects(caplog, "HEAD") == 2 * PARTS  # sent; there already
    assert requests_for_objects(caplog, "GET") == 0
    # Somebody overwrote one without a declared digest: now only its bytes can tell.
    file = artifact.manifest().parts[0].files[0]
    remote.files.pipe_file(remote.object(file), b"answers X")
    assert push(artifact, remote).objects == 1


def test_a_server_that_believes_any_digest_is_read_back(new_bucket, artifact, caplog):
    remote = Remote(new_bucket())
    assert not remote.answers_for_content
    assert files_of(remote) == []
    with caplog.at_level(logging.INFO, logger="werkzeug"):
        push(artifact, remote)
    assert requests_for_objects(caplog, "GET") == PARTS


def test_what_a_server_alters_is_found_and_taken_away(new_bucket, artifact, monkeypatch):
    remote = Remote(new_bucket())
    assert not remote.answers_for_content
    original = remotes._send
    monkeypatch.setattr(remotes, "_send", lambda f, p, body, sha: original(f, p, b"altered!!", sha))
    with pytest.raises(AngelshareError, match="does not have its digest after it was written"):
        push(artifact, remote)
    assert not [path for path in files_of(remote) if "/objects/" in path]


def _there_and_back(url, folder):
    store = ArtifactStore(folder / "large")
    recipe = make_recipe("corpus", inputs={}, large=True)
    artifact = store.artifact("corpus", recipe_key("corpus", recipe))
    source = folder / "large.bin"
    with source.open("wb") as stream:
        for _ in range(150):
            stream.write(os.urandom(1_000_000))
    artifact.commit(0, {"data.parquet": source}, inputs={})
    source.unlink()
    artifact.seal(recipe, 1)
    remote, there = Remote(url), ArtifactStore(folder / "there")
    remote.files.exists(url)  # what the client itself needs is not the object's
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    push(artifact, remote)
    pull(there, remote, "corpus", artifact.key)
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown_mb < 100, grown_mb


def test_no_object_is_held_in_memory_as_a_whole(new_bucket, tmp_path):
    """150 MB there and back, by a process that grows by less."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_there_and_back, args=(new_bucket(), tmp_path))
    process.start()
    process.join()
    assert process.exitcode == 0
