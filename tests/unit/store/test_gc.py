import os
import shutil
import time
from pathlib import Path

import pytest

from angelshare.errors import AngelshareError
from angelshare.files import TEMPORARY_PREFIX
from angelshare.recipes import make_recipe, recipe_key
from angelshare.store.artifacts import ArtifactStore
from angelshare.store.gc import collect, find_garbage, pin, register, unpin
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
