"""The commands as a user types them; what they call is tested where it lives."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from angelshare.recipes import make_recipe, recipe_key
from angelshare.store.artifacts import ArtifactStore
from angelshare.store.consumers import Consumer

ANGELSHARE = str(Path(sys.executable).parent / "angelshare")


def run(*arguments, cwd, status=0):
    done = subprocess.run(
        [ANGELSHARE, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def keys(tmp_path):
    """Two sealed corpora in ``tmp_path/store`` that differ in their seed."""
    store = ArtifactStore(tmp_path / "store")
    found = []
    for seed in (1, 2):
        recipe = make_recipe("corpus", inputs={}, decoding={"seed": seed})
        artifact = store.artifact("corpus", recipe_key("corpus", recipe))
        source = tmp_path / "source"
        source.write_text(f"answers {seed}")
        artifact.commit(0, {"data.parquet": source}, inputs={})
        artifact.seal(recipe, 1)
        found.append(artifact.key)
    return found


def test_looking_at_a_store(tmp_path, keys):
    store = ["--store", "store"]
    assert all(key in run("ls", *store, cwd=tmp_path) for key in keys)
    assert "seed: 1" in run("show", keys[0][:8], *store, cwd=tmp_path)
    assert "decoding.seed" in run("diff", keys[0], keys[1], *store, cwd=tmp_path)
    assert "2 artifacts are whole" in run("verify", *store, cwd=tmp_path)


def test_verify_names_what_is_damaged_and_repair_takes_it_away(tmp_path, keys):
    (victim, _) = sorted((tmp_path / "store/objects").glob("*/*"))
    victim.chmod(0o644)
    victim.write_text("answers X")
    printed = run("verify", "--store", "store", cwd=tmp_path, status=1)
    assert str(victim.name) in printed
    assert "part 0" in printed
    assert "Took away 2 files" in run("verify", "--repair", "--store", "store", cwd=tmp_path)


def test_garbage_is_only_named_until_it_is_asked_for(tmp_path, keys):
    run("pin", keys[0], "--reason", "published", "--store", "store", cwd=tmp_path)
    printed = run("gc", "--grace-days", 0, "--store", "store", cwd=tmp_path)
    assert "Would free" in printed
    assert "Nothing was deleted" in printed
    run("gc", "--grace-days", 0, "--delete", "--store", "store", cwd=tmp_path)
    listed = run("ls", "--store", "store", cwd=tmp_path)
    assert keys[0] in listed
    assert keys[1] not in listed


def test_publishing(tmp_path, keys):
    run("push", tmp_path / "shared", keys[0], "--store", "store", cwd=tmp_path)
    assert "1 artifacts are whole" in run("verify", "--store", "shared", cwd=tmp_path)


def test_the_catalogue_of_a_store(tmp_path, keys):
    run("catalogue", "--out", "offer", "--store", "store", cwd=tmp_path)
    found = json.loads((tmp_path / "offer" / "catalogue.json").read_text())
    assert sorted(one["key"] for one in found["artifacts"]) == sorted(keys)
    assert keys[0] in (tmp_path / "offer" / "catalogue.html").read_text()


def test_withdrawing_a_run(tmp_path, keys):
    artifact = ArtifactStore(tmp_path / "store").artifact("corpus", keys[0])
    artifact.add_consumer(Consumer(id="1", run="kd-1", team="ours", tokens_read=1, utc=""))
    what = ["withdraw", "kd-1", "--team", "ours", "--store", "store"]
    assert "no consumer of 1 artifacts any more" in run(*what, cwd=tmp_path)
    assert artifact.consumers() == []
    assert "is no consumer in store" in run(*what, cwd=tmp_path, status=1)


def test_errors_are_one_line(tmp_path, keys):
    assert "there is no store at nowhere" in run("ls", "--store", "nowhere", cwd=tmp_path, status=1)
    assert "0 artifacts" in run("show", "ffff", "--store", "store", cwd=tmp_path, status=1)
    assert "config/config.yaml cannot be read" in run("plan", cwd=tmp_path, status=1)


def test_measuring_a_command(tmp_path):
    command = [sys.executable, "-c", "sum(range(3 * 10**7))"]
    printed = run("meter", "--out", "energy.json", "--", *command, cwd=tmp_path)
    assert "energy.json: " in printed
    record = json.loads((tmp_path / "energy.json").read_text())
    assert record["record"]["status"] == "ok"
    assert record["total"]["energy_j"]["value"] > 0
    run("meter", "--out", "failed.json", "--", sys.executable, "-c", "raise SystemExit(3)",
        cwd=tmp_path, status=3)  # fmt: skip
    assert not (tmp_path / "failed.json").exists()
    run("emissions", ".", cwd=tmp_path)
    lines = (tmp_path / "emissions.csv").read_text().splitlines()
    assert len(lines) == 3, "the names, the attempt that worked and the one that failed"
