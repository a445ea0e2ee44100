"""The commands as a user types them; what they call is tested where it lives."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from angelshare.recipes import make_recipe, recipe_key
from angelshare.store.artifacts import ArtifactStore
from angelshare.store.consumers import Consumer
from angelshare.store.provenance import Provenance

DEFAULT = Path(__file__).resolve().parents[2] / "config/config.yaml"
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


@pytest.mark.parametrize("content", ["", "- 1\n", "text"])
def test_a_file_that_is_no_configuration(tmp_path, content):
    (tmp_path / "some.yaml").write_text(content)
    printed = run("plan", "--config", "some.yaml", cwd=tmp_path, status=1)
    assert printed.startswith("error: some.yaml is no configuration")


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "some.yaml").write_bytes(b"\xff\xfe")
    printed = run("plan", "--config", "some.yaml", cwd=tmp_path, status=1)
    assert printed.startswith("error: some.yaml cannot be read: 'utf-8' codec")


def test_what_a_file_system_refuses_is_one_line(tmp_path, keys):
    (tmp_path / "file").touch()
    printed = run("catalogue", "--store", "store", "--out", "file/x", cwd=tmp_path, status=1)
    assert printed == "error: [Errno 20] Not a directory: 'file/x'\n"


def test_a_pull_or_push_that_moves_nothing_says_so(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "artifacts").mkdir()
    where = ["--config", DEFAULT]
    assert "Nothing to send" in run("push", "elsewhere", *where, cwd=tmp_path)
    assert "Nothing to fetch" in run("pull", "store", *where, cwd=tmp_path)
    printed = run("pull", "store", "zz", *where, cwd=tmp_path, status=1)
    assert "store offers nothing whose key starts with 'zz'" in printed


def test_looking_at_a_store(tmp_path, keys):
    store = ["--store", "store"]
    assert all(key in run("ls", *store, cwd=tmp_path) for key in keys)
    assert "seed: 1" in run("show", keys[0][:8], *store, cwd=tmp_path)
    assert "decoding.seed" in run("diff", keys[0], keys[1], *store, cwd=tmp_path)
    assert "2 artifacts are whole" in run("verify", *store, cwd=tmp_path)


@pytest.fixture
def logits(tmp_path, keys):
    """Logits made from the first corpus, by two versions of a program, read by one run."""
    store = ArtifactStore(tmp_path / "store")
    recipe = make_recipe("logits", inputs={"sequences": {"kind": "corpus", "key": keys[0]}})
    artifact = store.artifact("logits", recipe_key("logits", recipe))
    content = store.artifact("corpus", keys[0]).manifest().content_sha256
    for part, torch in enumerate(("2.9.0", "2.9.0", "2.13.0")):
        artifact.commit(
            part,
            {"logits.parquet": tmp_path / "source"},
            inputs={"sequences": content},
            input_keys={"sequences": f"corpus/{keys[0]}"},
            provenance=Provenance(
                software={"torch": torch},
                device="cpu",
                model_files={"model.safetensors": "ab" * 32},
                tokenizer_sha256="cd" * 32,
                licences={"acme/chat@1": "LicenseRef-Acme", "dataset/1": None},
                restricted=["acme/chat@1"],
            ),
        )
    content = artifact.seal(recipe, 3).content_sha256
    for run, read in (("kd-1", content), ("kd-2", "ef" * 32)):
        artifact.add_consumer(
            Consumer(id=run, run=run, team="ours", tokens_read=1, utc="", content_sha256=read)
        )
    return artifact


def test_what_an_artifact_was_made_with_and_from(tmp_path, keys, logits):
    printed = run("show", logits.key, "--store", "store", cwd=tmp_path)
    assert "made with (parts 0-1): torch 2.9.0, on cpu" in printed
    assert "made with (parts 2): torch 2.13.0, on cpu" in printed
    assert "tokenizer (parts 2): cdcdcdcdcdcd, chat template none" in printed
    assert "model file (parts 2) model.safetensors: abababababab" in printed
    assert "licence of acme/chat@1: LicenseRef-Acme" in printed
    assert "licence of dataset/1: not stated" in printed
    assert "warning: the licence of acme/chat@1 restricts training on its outputs" in printed
    assert "read by kd-2 of ours, , as it was then: content efefefefefef" in printed
    made_from = logits.manifest().parts[0].inputs["sequences"][:12]
    assert f"sequences: corpus/{keys[0][:12]}  content {made_from}\n" in printed
    listed = run("ls", "--store", "store", cwd=tmp_path)
    assert "last use" in listed
    assert "licence restricts training on it" in listed


def test_a_changed_input_shows(tmp_path, keys, logits):
    artifact = ArtifactStore(tmp_path / "store").artifact("corpus", keys[0])
    manifest = artifact.manifest()
    for path in (artifact.manifest_path, artifact.receipt_path(0)):
        path.unlink()
    artifact.commit(0, {"data.parquet": tmp_path / "source"}, inputs={})
    now = artifact.seal(manifest.recipe, 1).content_sha256[:12]
    store = ["--store", "store"]
    shown = run("show", logits.key, *store, cwd=tmp_path)
    assert f"content {now}  CHANGED: made from {manifest.content_sha256[:12]}" in shown
    assert "made from a former input" in run("ls", *store, cwd=tmp_path)
    printed = run("verify", *store, cwd=tmp_path, status=1)
    assert f"logits {logits.key}, part 2 (read by kd-1, kd-2 of ours): made from other" in printed
    assert "Took away 4 files" in run("verify", "--repair", *store, cwd=tmp_path)
    artifact.manifest_path.unlink()
    printed = run("show", artifact.key, *store, cwd=tmp_path, status=1)
    assert "is not sealed yet: 1 parts are there" in printed


def test_verify_names_what_is_damaged_and_repair_takes_it_away(tmp_path, keys):
    (victim, _) = sorted((tmp_path / "store/objects").glob("*/*"))
    victim.chmod(0o644)
    victim.write_text("answers X")
    printed = run("verify", "--store", "store", cwd=tmp_path, status=1)
    assert str(victim.name) in printed
    assert "part 0" in printed
    assert "Took away 2 files" in run("verify", "--repair", "--store", "store", cwd=tmp_path)


def test_a_damaged_artifact_does_not_hide_the_others_from_the_list(tmp_path, keys):
    manifest = ArtifactStore(tmp_path / "store").artifact("corpus", keys[0]).manifest_path
    manifest.chmod(0o644)
    manifest.write_text('{"schema": ')
    printed = run("ls", "--store", "store", cwd=tmp_path, status=1)
    lines = {key: line for line in printed.splitlines() for key in keys if key in line}
    assert "damaged" in lines[keys[0]]
    assert "damaged" not in lines[keys[1]]
    assert "manifest.json is damaged" in printed
    assert "verify --repair" in printed


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
