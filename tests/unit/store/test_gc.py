import errno
import os
import shutil
import time
from pathlib import Path

import pytest

from angelshare.errors import AngelshareError
from angelshare.files import TEMPORARY_PREFIX
from angelshare.recipes import make_recipe, recipe_key
from angelshare.store.artifacts import ArtifactStore
from angelshare.store.consumers import Consumer
from angelshare.store.gc import collect, find_garbage, forget, pin, register, unpin
from angelshare.store.leases import Holder
from angelshare.store.verify import verify

RECORD = Path(__file__).parents[2] / "data/energy_sidecar.example.json"


def make(store, tmp_path, seed, text=None):
    recipe = make_recipe("corpus", inputs={}, decoding={"seed": seed})
    artifact = store.artifact("corpus", recipe_key("corpus", recipe))
    source = tmp_path / "source"
    source.write_text(text or f"answers {seed}")
    artifact.commit(0, {"data.parquet": source}, inputs={})
    artifact.seal(recipe, 1)
    artifact.attempts.mkdir(parents=True)
    shutil.copy(RECORD, artifact.attempts / "1.json")
    return artifact


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "store")


def age(store, days):
    then = time.time() - days * 86_400
    for path in store.root.rglob("*"):
        os.utime(path, (then, then))


def test_only_what_nobody_reaches_goes_and_its_bill_stays(store, tmp_path):
    ours, pinned, orphan = (make(store, tmp_path, seed) for seed in (1, 2, 3))
    register(store, "ours", tmp_path, [("corpus", ours.key)])
    pin(pinned, "the published corpus")
    age(store, 30)
    garbage = find_garbage(store, grace_days=14)
    assert [artifact.key for artifact in garbage.artifacts] == [orphan.key]
    assert garbage.bytes == len("answers 3")

    collect(garbage)
    assert verify(store) == []
    assert ours.paths()
    assert pinned.paths()
    assert not orphan.manifest_path.exists()
    assert list(orphan.attempts.glob("*.json"))
    assert find_garbage(store, grace_days=14).artifacts == []


def test_an_object_that_a_kept_artifact_shares_stays(store, tmp_path):
    kept = make(store, tmp_path, 1, "same")
    make(store, tmp_path, 2, "same")
    register(store, "ours", tmp_path, [("corpus", kept.key)])
    age(store, 30)
    garbage = find_garbage(store, grace_days=14)
    assert len(garbage.artifacts) == 1
    assert garbage.objects == []


def test_what_is_young_stays(store, tmp_path):
    make(store, tmp_path, 1)
    garbage = find_garbage(store, grace_days=14)
    assert (garbage.artifacts, garbage.objects) == ([], [])


def test_while_a_job_holds_a_lease_no_object_is_touched(store, tmp_path):
    make(store, tmp_path, 1)
    lease = store.root / "corpus" / ("0" * 32) / "leases" / "00000.json"
    lease.parent.mkdir(parents=True)
    age(store, 30)
    lease.write_text("{}")
    garbage = find_garbage(store, grace_days=14)
    assert garbage.objects == []
    assert "leases" in garbage.note


def test_a_lease_that_a_killed_job_left_behind_holds_nothing_and_goes(store, tmp_path):
    artifact = make(store, tmp_path, 1)
    left = artifact.folder / "leases" / "00000.json"
    left.parent.mkdir()
    left.write_text(Holder.this_process().model_copy(update={"started_s": 1.0}).model_dump_json())
    age(store, 30)
    left.touch()
    garbage = find_garbage(store, grace_days=14)
    assert [found.key for found in garbage.artifacts] == [artifact.key]
    assert len(garbage.objects) == 1
    age(store, 30)
    collect(find_garbage(store, grace_days=14))
    assert not left.exists()


def test_what_was_stored_again_is_young(store, tmp_path):
    """A job that stores bytes that are there already has no receipt for them yet."""
    artifact = make(store, tmp_path, 1)
    (path,) = artifact.paths()
    artifact.receipt_path(0).unlink()
    age(store, 30)
    assert find_garbage(store, grace_days=14).objects == [path]
    store.objects.put(tmp_path / "source", "parquet")
    assert find_garbage(store, grace_days=14).objects == []


def test_temporary_files_of_killed_jobs_go(store, tmp_path):
    make(store, tmp_path, 1)
    stray = store.objects.root / f"{TEMPORARY_PREFIX}x"
    stray.write_text("half")
    age(store, 30)
    assert stray in find_garbage(store, grace_days=14).temporary


def test_unpinning_what_is_not_pinned_says_so(store, tmp_path):
    artifact = make(store, tmp_path, 1)
    pin(artifact, "")
    unpin(artifact)
    with pytest.raises(AngelshareError, match="is not pinned"):
        unpin(artifact)


def lease(artifact):
    path = artifact.folder / "leases" / "00000.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(Holder.this_process().model_dump_json())
    return path


def came_meanwhile(kind, store, artifact, tmp_path):
    """What may happen between the dry run and the deletion."""
    if kind == "lease":
        lease(artifact)
    elif kind == "consumer":
        artifact.add_consumer(Consumer(id="1", run="kd-1", team="ours", tokens_read=1, utc=""))
    elif kind == "configuration":
        register(store, "ours", tmp_path, [("corpus", artifact.key)])
    elif kind == "pin":
        pin(artifact, "")
    else:
        artifact.adopt(0)


@pytest.mark.parametrize("kind", ["lease", "consumer", "configuration", "pin", "adoption"])
def test_what_came_into_use_meanwhile_stays(store, tmp_path, kind):
    artifact, other = make(store, tmp_path, 1), make(store, tmp_path, 2)
    age(store, 30)
    garbage = find_garbage(store, grace_days=14)
    assert len(garbage.artifacts) == 2
    came_meanwhile(kind, store, artifact, tmp_path)
    done = collect(garbage)
    assert any(str(artifact) in text for text in done.spared)
    assert verify(store) == []
    assert artifact.paths()
    assert not other.manifest_path.exists()


def test_an_object_that_a_new_artifact_needs_meanwhile_stays(store, tmp_path):
    """The same bytes under another recipe, stored between the dry run and the deletion."""
    make(store, tmp_path, 1, "same")
    age(store, 30)
    garbage = find_garbage(store, grace_days=14)
    assert len(garbage.objects) == 1
    new = make(store, tmp_path, 2, "same")
    collect(garbage)
    assert new.paths()
    assert verify(store) == []


def test_a_receipt_that_is_adopted_in_the_middle_of_deleting_is_put_back(
    store, tmp_path, monkeypatch
):
    artifact = make(store, tmp_path, 1)
    age(store, 30)
    garbage = find_garbage(store, grace_days=14)
    original = os.rename

    def rename(source, target):
        if Path(source) == artifact.receipt_path(0):
            artifact.adopt(0)
        original(source, target)

    monkeypatch.setattr(os, "rename", rename)
    done = collect(garbage)
    assert "came into use" in done.spared[0]
    assert artifact.adopt(0) is not None
    assert len(list(store.objects.root.glob("*/*"))) == 1


def test_storing_again_what_a_collection_takes_in_that_moment(store, tmp_path, monkeypatch):
    artifact = make(store, tmp_path, 1)
    (path,) = artifact.paths()
    original = os.utime

    def utime(target, *arguments):
        if Path(target) == path:
            monkeypatch.setattr(os, "utime", original)
            path.unlink()
        original(target, *arguments)

    monkeypatch.setattr(os, "utime", utime)
    store.objects.put(tmp_path / "source", "parquet")
    assert path.exists()


def test_two_studies_of_one_team_are_both_kept(store, tmp_path):
    first, second = make(store, tmp_path, 1), make(store, tmp_path, 2)
    register(store, "ours", tmp_path, [("corpus", first.key)], ["config/config.yaml"])
    register(store, "ours", tmp_path, [("corpus", second.key)], ["config/grids/olmo2.yaml"])
    age(store, 30)
    assert find_garbage(store, grace_days=14).artifacts == []
    register(store, "ours", tmp_path, [("corpus", second.key)], ["config/config.yaml"])
    assert [one.key for one in find_garbage(store, grace_days=14).artifacts] == [first.key]


def test_a_team_that_is_gone_can_be_forgotten(store, tmp_path):
    artifact = make(store, tmp_path, 1)
    register(store, "theirs", tmp_path, [("corpus", artifact.key)])
    age(store, 30)
    with pytest.raises(AngelshareError, match="known are: theirs"):
        forget(store, "ours")
    assert forget(store, "theirs") == 1
    assert len(find_garbage(store, grace_days=14).artifacts) == 1


@pytest.mark.parametrize("content", ["", "{}", "no JSON"])
def test_a_damaged_root_stops_the_collection(store, tmp_path, content):
    make(store, tmp_path, 1)
    age(store, 30)
    (store.root / "roots").mkdir()
    (store.root / "roots" / "theirs.json").write_text(content)
    with pytest.raises(AngelshareError, match=r"theirs\.json is damaged.*nothing is collected"):
        find_garbage(store, grace_days=14)


def test_a_pinned_artifact_keeps_what_it_was_made_from(store, tmp_path):
    upstream = make(store, tmp_path, 1)
    recipe = make_recipe("logits", inputs={"sequences": {"kind": "corpus", "key": upstream.key}})
    pinned = store.artifact("logits", recipe_key("logits", recipe))
    pinned.commit(0, {"logits.parquet": tmp_path / "source"}, inputs={})
    pinned.seal(recipe, 1)
    pin(pinned, "")
    age(store, 30)
    assert find_garbage(store, grace_days=14).artifacts == []


def test_an_object_that_only_a_manifest_names_stays(store, tmp_path):
    artifact = make(store, tmp_path, 1)
    register(store, "ours", tmp_path, [("corpus", artifact.key)])
    artifact.receipt_path(0).unlink()
    age(store, 30)
    assert find_garbage(store, grace_days=14).objects == []


def test_what_may_not_be_deleted_is_said_in_one_message(store, tmp_path, monkeypatch):
    make(store, tmp_path, 1)
    age(store, 30)

    def refuse(source, target):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(source))

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(AngelshareError, match=r"Permission denied at .*manifest\.json.*chmod"):
        collect(find_garbage(store, grace_days=14))
    assert verify(store) == []
