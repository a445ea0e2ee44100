"""A team's own results: an orphaned job and its resubmission, as two real processes."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from angelshare.files import publish_json, read_json
from angelshare.jobs import JobContext
from angelshare.reporter import Reporter
from angelshare.store import leases

RECIPE = {"seed": 1}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(leases, "POLL_S", 0.02)


def train(folder: Path, name: str, hold_s: float, recipe: dict = RECIPE) -> None:
    """What a job does: Snakemake deletes its outputs, then it makes or adopts the result."""
    declared, kept = folder / "training.json", folder / "finished.json"
    declared.unlink(missing_ok=True)
    report = Reporter(name, folder / f"{name}.log")
    context = SimpleNamespace(report=report)  # all of a job's context that this needs
    with JobContext.own_result(context, kept, recipe) as record:
        if record is None:
            with (folder / "made").open("a") as stream:
                stream.write(f"{name}\n")
            time.sleep(hold_s)
            record = {"recipe": recipe, "loss": 1.5}
            publish_json(kept, record)
    publish_json(declared, record)


def start(*arguments) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=train, args=arguments)
    process.start()
    return process


def wait_until(condition) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_resubmission_waits_for_the_orphan_and_adopts_its_result(tmp_path):
    orphan = start(tmp_path, "orphan", 0.5)
    wait_until((tmp_path / "made").exists)
    again = start(tmp_path, "again", 0.0)
    orphan.join(30)
    again.join(30)
    assert (orphan.exitcode, again.exitcode) == (0, 0)
    assert (tmp_path / "made").read_text() == "orphan\n"
    assert read_json(tmp_path / "training.json") == {"recipe": RECIPE, "loss": 1.5}
    log = (tmp_path / "again.log").read_text()
    assert "waiting for process" in log
    assert "finished by another attempt" in log
    assert list(tmp_path.glob(".*lease*")) == []


def test_a_result_that_snakemake_deleted_the_output_of_is_adopted(tmp_path):
    train(tmp_path, "orphan", 0.0)
    train(tmp_path, "again", 0.0)  # deletes the declared output first
    assert (tmp_path / "made").read_text() == "orphan\n"
    assert (tmp_path / "training.json").exists()


def test_a_dead_orphan_is_replaced(tmp_path):
    orphan = start(tmp_path, "orphan", 60.0)
    wait_until((tmp_path / "made").exists)
    os.kill(orphan.pid, signal.SIGKILL)
    orphan.join()
    train(tmp_path, "again", 0.0)
    assert (tmp_path / "made").read_text() == "orphan\nagain\n"
    assert "took over" in (tmp_path / "again.log").read_text()


@pytest.mark.parametrize("content", ['{"recipe": {"seed": 2}}', "half a fi", "[]"])
def test_a_result_of_another_recipe_or_a_damaged_one_is_made_again(tmp_path, content):
    (tmp_path / "finished.json").write_text(content)
    train(tmp_path, "first", 0.0)
    assert json.loads((tmp_path / "finished.json").read_text())["recipe"] == RECIPE
    assert (tmp_path / "made").exists()
