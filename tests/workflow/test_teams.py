"""Four checkouts at one empty store: nothing is generated twice, all of them finish, and the store
is what one checkout alone makes."""

import json
import subprocess
from collections import Counter

from tests.workflow.conftest import Checkout

TEAMS = 4
SMALL_TEACHER = {
    "demo": {"dataset": "problems", "tokenizer": "demo", "demo": {"seed": 1, "steps": 12}}
}
PROBLEMS = {
    "source": "word_problems",
    "seed": 7,
    "labelled": 40,
    "unlabelled": 60,
    "validation": 20,
    "test": 20,
}


def team(config, folder, store):
    """A checkout that shares a store."""
    checkout = Checkout.fresh(folder)
    checkout.configure(
        **config
        | {
            "store": {"root": str(store), "team": folder.name},
            "datasets": {"problems": PROBLEMS},
            "teachers": SMALL_TEACHER,
            "hardware": {"part_rows": 50},
        }
    )
    return checkout


def start(checkout):
    return subprocess.Popen(
        ["snakemake", "--profile", "local", "--cores", "1", "all_artifacts"],
        cwd=checkout.folder,
        env=checkout.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def made(store):
    """How often each part was made, by the records of all attempts."""
    found = Counter()
    for path in store.glob("*/*/attempts/*.json"):
        record = json.loads(path.read_text())
        if record["record"]["rule"] != "seal" and record.get("io", {}).get("outputs", []):
            wildcards = record["record"]["wildcards"]
            found[wildcards["kind"], wildcards["key"], wildcards["part"]] += 1
    return found


def contents(store):
    """Receipts and manifests byte for byte, and the names of all objects, which are digests."""
    records = [*store.glob("*/*/manifest.json"), *store.glob("*/*/parts/?????.json")]
    objects = {path.relative_to(store): b"" for path in store.glob("objects/*/*")}
    return objects | {path.relative_to(store): path.read_bytes() for path in records}


def test_teams_that_start_at_once_share_the_work(finished, tmp_path):
    store, lonely = tmp_path / "store", tmp_path / "lonely-store"
    checkouts = [team(finished.config, tmp_path / f"team-{n}", store) for n in range(TEAMS)]
    alone = team(finished.config, tmp_path / "alone", lonely)
    running = [start(checkout) for checkout in checkouts]
    printed = [process.communicate(timeout=900)[0] for process in running]
    assert [process.returncode for process in running] == [0] * TEAMS, "\n".join(printed)
    assert any("waiting for process" in text for text in printed)
    assert "are whole" in checkouts[0].run("angelshare", "verify")
    for checkout in checkouts:
        assert checkout.planned("all_artifacts") == {}

    alone.snakemake("all_artifacts")
    parts = made(store)
    assert len(parts) == 4 + 1 + 2  # logits has one part, the corpus two
    assert set(parts.values()) == {1}
    assert parts == made(lonely)
    assert contents(store) == contents(lonely)
