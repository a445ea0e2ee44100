"""Push and pull: a folder, fsspec's memory, and a real S3 server started here."""

import json
import multiprocessing
import os
import signal
import time

import pytest
from transfers import PARTS, edit_manifest, files_of, make, open_remote, put

from angelshare.energy.attempts import bill_of, read_attempts
from angelshare.errors import AngelshareError
from angelshare.store import transfer
from angelshare.store.artifacts import ArtifactStore
from angelshare.store.remote import NoAnswer, Remote
from angelshare.store.transfer import pull, push
from angelshare.store.verify import verify


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


def test_what_cannot_be_cleaned_up_hides_no_reason(artifact, request, tmp_path, monkeypatch):
    remote = open_remote("moved", request, tmp_path, monkeypatch)

    def refuse(*_, **__):
        raise RuntimeError("not while a transfer is open")

    monkeypatch.setattr(remote.files, "rm_file", refuse)
    monkeypatch.setattr(Remote, "_matches", lambda *_: False)
    with pytest.raises(AngelshareError, match="does not have its digest after it was written"):
        push(artifact, remote)
