"""Counting a study's tasks from what lies on disk."""

import json
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from tests.workflow.conftest import ROOT

from angelshare.config import load_config
from angelshare.energy.machine import run_of
from angelshare.grid import plan_study
from angelshare.plans import WORK
from angelshare.progress.cluster import SlurmJob
from angelshare.progress.page import write_page
from angelshare.progress.study import Reader
from angelshare.progress.watch import Watch

STARTED = datetime.now(UTC) - timedelta(seconds=60)


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """The embedded default, with nothing done."""
    monkeypatch.chdir(tmp_path)
    values = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    config = load_config({**values, "budget": {"kwh": 0.002}})
    return Reader(config, plan_study(config), config.store.open())


def record(folder, rule, wildcards, status="ok", joules=100.0, name="a", seconds=30.0, after=0):
    """An attempt's record as the meter leaves it, with what progress reads."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"2026-{name}.json"
    values = {
        "record": {
            "id": name, "rule": rule, "wildcards": wildcards, "status": status,
            "exit_code": None, "signal": None,
        },
        "run": {**run_of("", None).model_dump(mode="json"), "slurm": {"job_id": "7"}},
        "time": {
            "start_utc": (STARTED + timedelta(seconds=after)).isoformat(), "duration_s": seconds,
        },
        "total": {"energy_j": {"value": joules}},
    }  # fmt: skip
    path.write_text(json.dumps(values))
    return path


def artifact_of(reader, kind):
    plan = next(plan for plan in reader.study.artifacts.values() if plan.kind == kind)
    return plan, reader.store.artifact(kind, plan.key)


def make(path, text="{}"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_states_energy_and_time_left(reader, tmp_path):
    assert reader.read().summary() == "0 of 55 done, 0 running; 0 J of 7,200 J (0%)"

    _, dataset = artifact_of(reader, "dataset")
    make(dataset.receipt_path(0))  # no log of ours: another team made it
    record(dataset.attempts, "prepare_dataset", {"kind": "dataset", "part": "00000"}, joules=500.0)
    corpus_plan, corpus = artifact_of(reader, "corpus")
    make(corpus.receipt_path(0))
    make(tmp_path / "logs/generate_corpus" / f"{corpus_plan.key}-00000.log")
    record(corpus.attempts, "generate_corpus", {"part": "00000"}, joules=1000.0)
    record(corpus.attempts, "generate_corpus", {"part": "00001"}, "killed", 300.0, "b")
    run = next(iter(reader.study.runs))
    attempts = tmp_path / "results/students" / run / "energy.attempts"
    record(attempts, "train_student", {"run": run}, "running", 0.0)
    make(attempts / "angelshare-a.prom", 'angelshare_energy_joules{rule="x"} 12.5\n')

    progress = reader.read()
    states = {(task.rule, task.state) for task in progress.tasks}
    assert ("prepare_dataset", "reused") in states
    assert ("generate_corpus", "done") in states
    assert ("generate_corpus", "failed") in states
    assert ("train_student", "running") in states
    assert progress.energy_j == 500.0 + 1000.0 + 300.0 + 12.5
    assert progress.lost_j == 300.0
    assert progress.summary() == (
        "2 of 55 done (1 reused), 1 running, 1 failed; 1,812 J of 7,200 J (25%), 300 J of it in "
        "attempts that failed; more than 30 s left"
    )


def test_the_watch_says_each_failure_once_with_log_and_record(reader, tmp_path):
    run = next(iter(reader.study.runs))
    folder = tmp_path / "results/students" / run / "energy.attempts"
    old = record(folder, "train_student", {"run": run}, "failed", name="old")
    said = []
    watch = Watch(reader, tmp_path, tmp_path / "results/status.html", False, said.append)
    new = record(folder, "train_student", {"run": run}, "preempted", name="new")
    watch.look()
    watch.look()
    (line,) = (text for text in said if "likely cause" in text)
    assert f"train_student {run} preempted (Slurm job 7 on" in line
    assert f"logs/train_student/{run}.log" in line
    assert str(new.relative_to(tmp_path)) in line
    assert str(old) not in line
    assert "1 failed" in (tmp_path / "results/status.html").read_text()


@pytest.fixture
def on_slurm(reader, tmp_path, monkeypatch):
    """A watch on a cluster, the jobs that its Slurm tells of, and what it has said."""
    jobs, said = [], []
    monkeypatch.setattr("angelshare.progress.watch.cluster_jobs", lambda *_: list(jobs))
    return Watch(reader, tmp_path, tmp_path / "results/status.html", True, said.append), jobs, said


def slurm_job(number="7", **changes):
    values = {"state": "FAILED", "rule": "account", "waited_for": True, "log": None, "record": None}
    return SlurmJob(number=number, **{**values, "cause": "out of memory", **changes})


def test_a_job_that_slurm_ran_again_was_sent_back_whatever_became_of_it(on_slurm, reader, tmp_path):
    watch, jobs, said = on_slurm
    run = next(iter(reader.study.runs))
    folder = tmp_path / "results/students" / run / "energy.attempts"
    first = record(folder, "train_student", {"run": run}, "killed")
    second = record(folder, "train_student", {"run": run}, "failed", name="b", after=30)
    jobs.append(slurm_job(record=second))
    watch.look()
    lost, failed = (text for text in said if "likely cause" in text)
    assert "likely cause: Slurm sent it back into the queue" in lost
    assert lost.endswith(str(first.relative_to(tmp_path)))
    assert "likely cause: out of memory" in failed


def test_the_last_look_waits_for_no_word_of_slurm(on_slurm, reader, tmp_path):
    watch, jobs, said = on_slurm
    jobs.append(slurm_job(state="COMPLETING", cause=None))
    run = next(iter(reader.study.runs))
    folder = tmp_path / "results/students" / run / "energy.attempts"
    record(folder, "train_student", {"run": run}, "failed")
    make(tmp_path / f"logs/train_student/{run}.log", "2026-01-01T00:00:00Z error: no row is left\n")
    watch.look()
    assert not any("likely cause" in text for text in said)
    watch.look(last=True)
    (line,) = (text for text in said if "likely cause" in text)
    assert "likely cause: no row is left" in line


def test_a_failed_slurm_job_without_a_record_is_named_once(on_slurm):
    watch, jobs, said = on_slurm
    jobs += [slurm_job("8"), slurm_job("9", record=Path("a.json")), slurm_job("10", cause=None)]
    watch.look()
    watch.look()
    (line,) = (text for text in said if "Slurm job" in text)
    assert line.startswith("Slurm job 8 (account): failed, likely cause: out of memory")


def test_a_job_that_snakemake_waits_for_in_vain_is_named_with_the_way_out(reader, tmp_path):
    said = []
    watch = Watch(reader, tmp_path, tmp_path / "status.html", False, said.append)
    gone = SlurmJob(
        number="9", state="CANCELLED", rule="demo_teacher", waited_for=True, log=None,
        record=None, cause="cancelled",
    )  # fmt: skip
    for _ in range(10):
        watch.hanging([gone])
    (line,) = said
    assert "Slurm job 9 (demo_teacher)" in line
    assert "interrupt Snakemake (Ctrl-C) and start it again" in line


def test_a_job_that_slurm_preempted_and_ended_goes_back_into_the_queue_once(on_slurm, monkeypatch):
    watch, jobs, said = on_slurm
    asked = []
    monkeypatch.setattr(
        "angelshare.progress.watch.requeue", lambda number: asked.append(number) or 1
    )
    jobs.append(slurm_job(state="PREEMPTED", cause="preempted"))
    watch.look()
    watch.look()
    assert asked == ["7"]
    (line,) = (text for text in said if "Slurm job" in text)
    assert line == "Slurm job 7 (account) was preempted: put back into the queue"


@pytest.mark.parametrize(
    ("joules", "rules", "stops"),
    [
        (8000.0, {"train_student", "account"}, 1),
        (7000.0, {"train_student", "account"}, 0),
        (8000.0, {"account", "frontiers"}, 0),
    ],
)
def test_a_spent_budget_stops_a_run_that_has_more_to_spend_on(
    reader, tmp_path, joules, rules, stops
):
    run = next(iter(reader.study.runs))
    record(
        tmp_path / "results/students" / run / "energy.attempts",
        "train_student", {"run": run}, "failed", joules,
    )  # fmt: skip
    said, stopped = [], []
    watch = Watch(
        reader, tmp_path, tmp_path / "status.html", False, said.append,
        rules=rules, stop=lambda: stopped.append(None),
    )  # fmt: skip
    watch.look()
    watch.look()
    assert len(stopped) == stops
    assert sum("the budget is spent: 0.002222 of 0.002 kWh" in text for text in said) == stops


def test_a_watch_that_cannot_look_says_so_once_and_looks_again(reader, tmp_path, monkeypatch):
    monkeypatch.setattr("angelshare.progress.watch.LOOK_EVERY_S", 0.01)
    said, looks, enough = [], [], threading.Event()
    watch = Watch(reader, tmp_path, tmp_path / "status.html", False, said.append)

    def look():
        looks.append(None)
        if len(looks) < 4:
            raise OSError("stale file handle")
        enough.set()

    monkeypatch.setattr(watch, "look", look)
    watch.start()
    assert enough.wait(10)
    (line,) = said
    assert "OSError('stale file handle'). The jobs go on" in line


def test_the_page_shows_what_is_where(reader, tmp_path):
    write_page(reader.read(), [], tmp_path / "status.html")
    page = (tmp_path / "status.html").read_text()
    assert "http-equiv" in page
    assert page.count("<tr class='waiting'>") == 55


def test_every_kind_has_its_rule(reader):
    assert {plan.kind for plan in reader.study.artifacts.values()} <= set(WORK)
