"""Several checkouts at one empty store: nothing is generated twice, and all of them finish."""

import json
import subprocess
from collections import Counter

from tests.workflow.conftest import Checkout

TEAMS = 3
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


def test_teams_that_start_at_once_share_the_work(finished, tmp_path):
    store = tmp_path / "store"
    checkouts = []
    for number in range(TEAMS):
        checkout = Checkout.fresh(tmp_path / f"team-{number}")
        checkout.configure(
            **finished.config
            | {
                "store": {"root": str(store), "team": f"team-{number}"},
                "datasets": {"problems": PROBLEMS},
                "teachers": SMALL_TEACHER,
                "hardware": {"part_rows": 50},
            }
        )
        checkouts.append(checkout)
    running = [
        subprocess.Popen(
            ["snakemake", "--profile", "local", "--cores", "1", "all_artifacts"],
            cwd=checkout.folder,
            env=checkout.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for checkout in checkouts
    ]
    printed = [process.communicate(timeout=600)[0] for process in running]
    assert [process.returncode for process in running] == [0] * TEAMS, "\n".join(printed)

    made = Counter()
    for path in store.glob("*/*/attempts/*.json"):
        record = json.loads(path.read_text())
        outputs = record.get("io", {}).get("outputs", [])
        if record["record"]["rule"] != "seal" and outputs:
            wildcards = record["record"]["wildcards"]
            made[wildcards["kind"], wildcards["key"], wildcards["part"]] += 1
    receipts = list(store.glob("*/*/parts/?????.json"))
    assert len(made) == len(receipts) == 4 + 1 + 2  # logits has one part, the corpus two
    assert set(made.values()) == {1}
    assert any("waiting for process" in text for text in printed)
    assert "are whole" in checkouts[0].run("angelshare", "verify")
    for checkout in checkouts:
        assert checkout.planned("all_artifacts") == {}
