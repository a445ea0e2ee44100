import json
from pathlib import Path

import fsspec
import pytest

from angelshare.errors import AngelshareError
from angelshare.recipes import make_recipe, recipe_key
from angelshare.store.artifacts import ArtifactStore
from angelshare.store.transfer import Remote, pull, push
from angelshare.store.verify import verify

RECIPE = make_recipe("corpus", inputs={}, decoding={"seed": 1})
KEY = recipe_key("corpus", RECIPE)
RECORD = json.loads((Path(__file__).parents[2] / "data/energy_sidecar.example.json").read_text())


@pytest.fixture
def artifact(tmp_path):
    artifact = ArtifactStore(tmp_path / "here").artifact("corpus", KEY)
    for part in range(2):
        source = tmp_path / "source"
        source.write_text(f"answers {part}")
        artifact.commit(part, {"data.parquet": source}, inputs={})
    artifact.seal(RECIPE, 2)
    artifact.attempts.mkdir(parents=True)
    (artifact.attempts / "1.json").write_text(json.dumps(RECORD))
    return artifact


@pytest.fixture(params=["folder", "memory"])
def remote(request, tmp_path):
    if request.param == "folder":
        return Remote(str(tmp_path / "shared"))
    files = fsspec.filesystem("memory")
    if files.exists("/shared"):
        files.rm("/shared", recursive=True)
    return Remote("memory://shared")


def test_there_and_back_is_the_same_artifact(artifact, remote, tmp_path):
    assert push(artifact, remote).objects == 2
    store = ArtifactStore(tmp_path / "there")
    assert pull(store, remote, "corpus", KEY).objects == 2
    arrived = store.artifact("corpus", KEY)
    assert arrived.manifest() == artifact.manifest()
    assert [path.read_text() for path in arrived.paths()] == ["answers 0", "answers 1"]
    assert arrived.adopt(1) is not None
    assert verify(store) == []


def test_the_producers_joules_travel_and_are_labelled(artifact, remote, tmp_path):
    push(artifact, remote)
    store = ArtifactStore(tmp_path / "there")
    pull(store, remote, "corpus", KEY)
    (path,) = store.artifact("corpus", KEY).attempts.glob("*.json")
    record = json.loads(path.read_text())
    assert [c["method"] for c in record["components"]] == ["imported", "imported", "none"]
    assert record["components"][0]["energy_j"] == RECORD["components"][0]["energy_j"]
    assert "gpu0 nvml_counter" in record["warnings"][0]["text"]


def test_what_is_there_is_not_sent_again_and_what_is_damaged_is(artifact, remote):
    push(artifact, remote)
    assert push(artifact, remote).skipped == 2
    file = artifact.manifest().parts[0].files[0]
    remote.files.pipe_file(remote.object(file), b"answers X")
    again = push(artifact, remote)
    assert (again.objects, again.skipped) == (1, 1)


def test_a_broken_transfer_leaves_no_manifest_and_goes_on(artifact, remote, monkeypatch):
    sent = []
    original = remote.files.put_file

    def fail_on_the_second(*arguments, **options):
        if sent:
            raise ConnectionError
        sent.append(arguments)
        original(*arguments, **options)

    monkeypatch.setattr(remote.files, "put_file", fail_on_the_second)
    with pytest.raises(ConnectionError):
        push(artifact, remote)
    assert remote.manifest("corpus", KEY) is None
    monkeypatch.undo()
    done = push(artifact, remote)
    assert (done.objects, done.skipped) == (1, 1)


def test_an_object_that_was_altered_there_is_refused(artifact, remote, tmp_path):
    push(artifact, remote)
    file = artifact.manifest().parts[1].files[0]
    remote.files.pipe_file(remote.object(file), b"answers X")
    store = ArtifactStore(tmp_path / "there")
    with pytest.raises(AngelshareError, match="arrived with digest"):
        pull(store, remote, "corpus", KEY)
    assert not store.artifact("corpus", KEY).manifest_path.exists()


def test_a_manifest_that_points_out_of_the_store_is_refused(artifact, remote, tmp_path):
    push(artifact, remote)
    path = remote.path("corpus", KEY, "manifest.json")
    text = remote.files.cat_file(path).decode().replace("data.parquet", "../../etc/passwd")
    remote.files.pipe_file(path, text.encode())
    with pytest.raises(AngelshareError, match="is damaged"):
        pull(ArtifactStore(tmp_path / "there"), remote, "corpus", KEY)


def test_what_is_not_there_is_said(remote, tmp_path):
    with pytest.raises(AngelshareError, match=f"has no corpus/{KEY}"):
        pull(ArtifactStore(tmp_path / "there"), remote, "corpus", KEY)


@pytest.mark.parametrize("content", [b"no JSON", b"[]", b"{}", b'{"components": [1]}'])
def test_a_record_that_is_none_is_refused_before_the_manifest(artifact, remote, tmp_path, content):
    push(artifact, remote)
    remote.files.pipe_file(remote.path("corpus", KEY, "attempts", "1.json"), content)
    store = ArtifactStore(tmp_path / "there")
    with pytest.raises(AngelshareError, match="is no energy record"):
        pull(store, remote, "corpus", KEY)
    assert not store.artifact("corpus", KEY).manifest_path.exists()
