"""Push and pull: a folder, fsspec's memory, and a real S3 server started here."""

import hashlib
import json
import logging
import multiprocessing
import os
import re
import resource
import signal
import time
from pathlib import Path

import fsspec
import pytest

from angelshare.energy import EnergySettings, Job, window
from angelshare.energy.attempts import bill_of, read_attempts
from angelshare.errors import AngelshareError
from angelshare.recipes import make_recipe, recipe_key
from angelshare.store import remote as remotes
from angelshare.store import transfer
from angelshare.store.artifacts import ArtifactStore
from angelshare.store.remote import NoAnswer, Remote
from angelshare.store.transfer import pull, push
from angelshare.store.verify import verify

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


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A corpus and the model it was made by, in one store."""
    folder = tmp_path_factory.mktemp("made") / "here"
    model = make(folder, make_recipe("model", inputs={}), "weights", kind="model", parts=1)
    recipe = make_recipe(
        "corpus",
        inputs={"teacher": {"kind": "model", "key": model.key}},
        source={"licence": "CC-BY-4.0"},
    )
    return make(folder, recipe, "answers")


@pytest.fixture
def artifact(made):
    return made


@pytest.fixture(params=["folder", "file", "memory", "s3", "moved"])
def each_remote(request, tmp_path, monkeypatch):
    return open_remote(request, tmp_path, monkeypatch)


@pytest.fixture(params=["memory", "s3"])
def remote(request, tmp_path, monkeypatch):
    return open_remote(request, tmp_path, monkeypatch)


def open_remote(request, tmp_path, monkeypatch):
    if request.param == "s3":
        return Remote(request.getfixturevalue("new_bucket")())
    if request.param == "folder":
        return Remote(str(tmp_path / "shared"))
    if request.param == "file":
        return Remote(f"file://{tmp_path}/shared")
    if request.param == "moved":
        # A file server that is no object store: temporary names and moves.
        monkeypatch.setattr(remotes, "ATOMIC_PUT", frozenset())
    files = fsspec.filesystem("memory")
    if files.exists("/shared"):
        files.rm("/shared", recursive=True)
    return Remote("memory://shared")


@pytest.fixture
def there(tmp_path):
    return ArtifactStore(tmp_path / "there")


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


def test_there_and_back_is_the_same_artifact(artifact, each_remote, there):
    sent = push(artifact, each_remote)
    assert (sent.objects, sent.skipped) == (PARTS, 0)
    assert pull(there, each_remote, "corpus", artifact.key).objects == PARTS
    arrived = there.artifact("corpus", artifact.key)
    assert arrived.manifest_path.read_bytes() == artifact.manifest_path.read_bytes()
    assert [path.read_text() for path in arrived.paths()] == ["answers 0", "answers 1", "answers 2"]
    assert arrived.manifest().recipe["source"] == {"licence": "CC-BY-4.0"}
    assert verify(there) == []
    assert not [path for path in files_of(each_remote) if ".tmp-" in path]
    if each_remote.folder is not None:
        assert verify(each_remote.folder) == []


def test_the_producers_joules_travel_and_are_labelled(artifact, each_remote, there):
    push(artifact, each_remote)
    pull(there, each_remote, "corpus", artifact.key)
    arrived = there.artifact("corpus", artifact.key)
    before, after = read_attempts(artifact.attempts), read_attempts(arrived.attempts)
    assert len(after) == PARTS
    assert bill_of(after) == bill_of(before)
    assert {part.method for one in after for part in one.components} <= {"imported", "none"}
    assert all(one.warnings[-1].code == "imported" for one in after)
    sidecar = json.loads((arrived.folder / "parts/00001.energy.json").read_text())
    assert sidecar["record"]["wildcards"]["part"] == "00001"
    assert sidecar["warnings"][-1]["code"] == "imported"


def test_what_an_input_cost_travels_without_the_input(artifact, remote, there):
    push(artifact, remote)
    name = ("model", artifact.manifest().recipe["inputs"]["teacher"]["key"])
    pull(there, remote, "corpus", artifact.key, upstream=[name])
    model = there.artifact(*name)
    assert not model.manifest_path.exists()
    expected = read_attempts(artifact.store.artifact(*name).attempts)
    assert bill_of(read_attempts(model.attempts)) == bill_of(expected)
    assert verify(there) == []


def test_what_is_there_is_not_sent_again_and_what_is_damaged_is(artifact, each_remote):
    push(artifact, each_remote)
    before = files_of(each_remote)
    assert push(artifact, each_remote).skipped == PARTS
    file = artifact.manifest().parts[0].files[0]
    put(each_remote, each_remote.object(file), b"answers X")
    again = push(artifact, each_remote)
    assert (again.objects, again.skipped) == (1, PARTS - 1)
    assert files_of(each_remote) == before


def test_a_push_that_breaks_off_leaves_no_manifest_and_goes_on(artifact, each_remote, monkeypatch):
    monkeypatch.setattr(transfer, "WORKERS", 1)
    sent = []
    original = Remote.put

    def fail_on_the_second(self, source, file):
        if sent:
            raise NoAnswer("gone")
        sent.append(file)
        original(self, source, file)

    with monkeypatch.context() as patch:
        patch.setattr(Remote, "put", fail_on_the_second)
        with pytest.raises(NoAnswer):
            push(artifact, each_remote)
    assert each_remote.manifest("corpus", artifact.key) is None
    done = push(artifact, each_remote)
    assert (done.objects, done.skipped) == (PARTS - 1, 1)


def test_a_pull_that_breaks_off_leaves_no_manifest_and_goes_on(
    artifact, remote, there, monkeypatch
):
    push(artifact, remote)
    monkeypatch.setattr(transfer, "WORKERS", 1)
    original = Remote.blocks
    begun = []

    def break_off(self, file):
        begun.append(file)
        for block in original(self, file):
            yield block[: len(block) // 2] if len(begun) == 2 else block
        if len(begun) == 2:
            raise NoAnswer("gone")

    with monkeypatch.context() as patch:
        patch.setattr(Remote, "blocks", break_off)
        with pytest.raises(AngelshareError, match="gone"):
            pull(there, remote, "corpus", artifact.key)
    arrived = there.artifact("corpus", artifact.key)
    assert not arrived.manifest_path.exists()
    assert verify(there) == []
    done = pull(there, remote, "corpus", artifact.key)
    assert done.objects + done.skipped == PARTS
    assert done.objects >= 1 <= done.skipped
    assert bill_of(read_attempts(arrived.attempts)) == bill_of(read_attempts(artifact.attempts))


def _pull_slowly(root, url, key):
    original = Remote.blocks

    def slowly(self, file):
        for block in original(self, file):
            yield block[:3]
            time.sleep(0.1)
            yield block[3:]

    Remote.blocks = slowly
    pull(ArtifactStore(root), Remote(url), "corpus", key)


def test_a_pull_that_was_killed_is_taken_over_and_goes_on(artifact, tmp_path, there):
    """Real processes, killed without a word at five instants; the last one finishes."""
    remote = Remote(str(tmp_path / "shared"))
    push(artifact, remote)
    for pause in (0.02, 0.06, 0.1, 0.14, 0.18):
        context = multiprocessing.get_context("fork")
        process = context.Process(
            target=_pull_slowly, args=(there.root, remote.url, artifact.key), daemon=True
        )
        process.start()
        time.sleep(pause)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert verify(there) == []
    pull(there, remote, "corpus", artifact.key)
    assert verify(there) == []
    arrived = there.artifact("corpus", artifact.key)
    assert arrived.manifest() == artifact.manifest()
    assert len(read_attempts(arrived.attempts)) == PARTS


def test_two_that_pull_at_once_fetch_each_object_once(artifact, tmp_path, there):
    remote = Remote(str(tmp_path / "shared"))
    push(artifact, remote)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()

    def work():
        queue.put(
            pull(ArtifactStore(there.root), Remote(remote.url), "corpus", artifact.key).objects
        )

    processes = [context.Process(target=work) for _ in range(2)]
    for process in processes:
        process.start()
    moved = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sum(moved) == PARTS
    assert verify(there) == []


def test_parts_made_here_meanwhile_stay_and_bring_no_bill_of_theirs(
    artifact, remote, there, tmp_path
):
    push(artifact, remote)
    mine = there.artifact("corpus", artifact.key)
    source = tmp_path / "mine"
    source.write_text("my answer")
    mine.commit(1, {"data.parquet": source}, inputs={})
    pull(there, remote, "corpus", artifact.key)
    assert [path.read_text() for path in mine.paths()] == ["answers 0", "my answer", "answers 2"]
    parts = {one.record.wildcards["part"] for one in read_attempts(mine.attempts)}
    assert parts == {"00000", "00002"}


def test_content_that_another_team_made_apart_is_left_alone(artifact, remote, tmp_path):
    push(artifact, remote)
    recipe = artifact.manifest().recipe
    other = make(tmp_path / "other", recipe, "different answers")
    with pytest.raises(AngelshareError, match="with other content"):
        push(other, remote)
    found, _ = remote.manifest("corpus", artifact.key)
    assert found == artifact.manifest()


# -- a hostile remote ---------------------------------------------------------------------------


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


def test_more_than_the_disk_holds_is_refused_before_it_is_fetched(artifact, remote, there):
    push(artifact, remote)

    def grow(value):
        file = value["parts"][0]["files"][0]
        file["bytes"] = 10**18
        value["bytes"] = 10**18

    edit_manifest(remote, artifact, grow)
    with pytest.raises(AngelshareError, match="are free"):
        pull(there, remote, "corpus", artifact.key)


# -- what goes wrong ----------------------------------------------------------------------------


def test_what_is_not_there_is_said(remote, there):
    key = "0" * 32
    with pytest.raises(AngelshareError, match=f"has no corpus/{key}"):
        pull(there, remote, "corpus", key)
    with pytest.raises(AngelshareError, match="is not the name of an artifact"):
        pull(there, remote, "../corpus", key)


def test_a_remote_that_does_not_answer_is_said(new_bucket, artifact, monkeypatch, there):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    options = {"config_kwargs": {"retries": {"max_attempts": 0}, "connect_timeout": 1}}
    remote = Remote("s3://bucket/store", **options)
    monkeypatch.setattr(remote.files, "retries", 1)
    with pytest.raises(NoAnswer, match="does not answer"):
        pull(there, remote, "corpus", artifact.key)
    with pytest.raises(AngelshareError, match="cannot be opened"):
        Remote("nosuch://store")


def test_an_object_that_is_damaged_here_is_not_published(made, each_remote, tmp_path):
    damaged = make(tmp_path / "damaged", made.manifest().recipe, "answers")
    path = damaged.paths()[1]
    path.chmod(0o644)
    path.write_text("answers X")
    with pytest.raises(AngelshareError, match=r"part 1.*has digest"):
        push(damaged, each_remote)
    assert each_remote.manifest("corpus", damaged.key) is None
    file = damaged.manifest().parts[1].files[0]
    assert not each_remote.files.exists(each_remote.object(file))


# -- S3 -----------------------------------------------------------------------------------------


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
