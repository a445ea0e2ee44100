"""A Slurm cluster of the tests' own, and the small study run on it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
import yaml

from tests.workflow.conftest import Checkout

HERE = Path(__file__).parent
SITE = {
    "all": {"slurm_partition": "cpu"},
    "gpu": {"slurm_partition": "gpu"},
    "status-seconds": 2,
    "latency-wait": 20,
    "retries": 4,
}
STARTED: list[subprocess.Popen[bytes]] = []
"""Every Snakemake that a test started."""
Found = TypeVar("Found")


def wait_for(condition: Callable[[], Found], what: str, seconds: float = 600.0) -> Found:
    """The first true value of ``condition``."""
    print(f"{time.strftime('%T')} waiting for {what}", flush=True)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.3)
    raise AssertionError(f"waited {seconds:.0f} s in vain for {what}")


@dataclass
class Job:
    """A job in Slurm's queue."""

    number: str
    state: str
    node: str
    comment: str


class Cluster:
    """The loopback cluster in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "SLURM_CONF": str(folder / "etc/slurm.conf"),
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        }

    def script(self, *arguments: str) -> None:
        """Run cluster.sh."""
        print(f"{time.strftime('%T')} cluster.sh", *arguments, flush=True)
        subprocess.run([HERE / "cluster.sh", *arguments], check=True, timeout=120)

    def slurm(self, *command: str) -> str:
        """Run a Slurm command."""
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def running(self, rule: str, ending: str = "") -> Job | None:
        """The running job of a rule whose wildcards end so."""
        for line in self.slurm("squeue", "-h", "-t", "R", "-o", "%i|%T|%N|%k").splitlines():
            job = Job(*line.strip().split("|", 3))
            if job.comment.startswith(f"rule_{rule}") and job.comment.endswith(ending):
                return job
        return None

    def terminate_step(self, job: Job) -> None:
        """Send SIGTERM to the process that Slurm itself started for a job's step."""
        for process in psutil.process_iter(["cmdline"]):
            try:
                known, parent = process.environ(), process.parent()
                step = (known.get("SLURM_JOB_ID"), known.get("SLURM_STEP_ID"))
                if step == (job.number, "0") and parent and parent.name() == "slurmstepd":
                    process.terminate()
                    return
            except psutil.Error:
                continue
        raise AssertionError(f"no step of job {job.number} was found")

    def kill_node(self, node: str) -> None:
        """What a power cut does: the daemon and every process of the node's jobs are gone."""
        numbers = self.slurm("squeue", "-h", "-w", node, "-t", "R", "-o", "%i").split()
        self.script("stop", str(self.folder), f"slurmd.{node}")
        for process in psutil.process_iter(["cmdline"]):
            try:
                number = process.environ().get("SLURM_JOB_ID")
                name = " ".join(process.info["cmdline"] or [])
                if number in numbers or any(f"slurmstepd: [{n}." in name for n in numbers):
                    process.kill()
            except psutil.Error:
                continue


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster, up; skipped where there can be none."""
    if os.geteuid() != 0:
        pytest.skip("a Slurm cluster of our own needs root")
    installed = subprocess.run([HERE / "cluster.sh", "install"], capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"Slurm cannot be installed here: {installed.stderr.strip()[-300:]}")
    folder = Path(tempfile.mkdtemp(prefix="angelshare-slurm-", dir="/tmp"))
    one = Cluster(folder)
    try:
        one.script("up", str(folder))
        yield one
    finally:
        for process in STARTED:
            if process.poll() is None:  # of a test that failed
                process.kill()
                process.wait()
        one.script("down", str(folder))
        shutil.rmtree(folder)


class Study:
    """The small study in a checkout of its own."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.checkout = Checkout.fresh(folder)
        self.checkout.configure(**{**yaml.safe_load((HERE / "study.yaml").read_text()), **changes})
        (folder / "slurm/site.yaml").write_text(yaml.safe_dump(SITE))
        self.folder = folder
        self.faults = folder / "faults"
        self.faults.mkdir()
        self.printed = folder / "printed.log"

    def fault(self, kind: str, rule: str, value: str = "") -> None:
        """Arrange a fault; see faults/sitecustomize.py."""
        (self.faults / f"{kind}.{rule}").write_text(value)

    def mend(self, kind: str, rule: str) -> None:
        """Take a fault back."""
        (self.faults / f"{kind}.{rule}").unlink()

    def start(
        self, cluster: Cluster | None, *arguments: str, target: str = "all_frontiers"
    ) -> subprocess.Popen[bytes]:
        """Start Snakemake: on the cluster, or here."""
        profile = "slurm" if cluster else "local"
        environment = {**self.checkout.environment, **(cluster.environment if cluster else {})}
        environment["PATH"] = f"{environment['PATH']}:{self.checkout.environment['PATH']}"
        environment["PYTHONPATH"] = f"{self.folder / 'workflow/lib'}:{HERE / 'faults'}"
        environment["ANGELSHARE_TEST_FAULTS"] = str(self.faults)
        with self.printed.open("ab") as stream:
            process = subprocess.Popen(
                ["snakemake", "--profile", profile, target, *arguments],
                cwd=self.folder,
                env=environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        STARTED.append(process)
        return process

    def text(self) -> str:
        """All that Snakemake printed."""
        return self.printed.read_text()

    def records(self, *patterns: str) -> list[dict[str, Any]]:
        """Attempt records, by start."""
        paths = [path for pattern in patterns for path in self.folder.glob(pattern)]
        found = [json.loads(path.read_text()) for path in paths]
        return sorted(found, key=lambda record: record["time"]["start_utc"])

    def of_rule(self, rule: str) -> list[dict[str, Any]]:
        """Attempt records of a rule."""
        everywhere = ("artifacts/*/*/attempts/*.json", "results/*/**/*energy.attempts/*.json")
        return [r for r in self.records(*everywhere) if r["record"]["rule"] == rule]

    def pieces(self, part: int) -> int:
        """Finished pieces of an unfinished part of the corpus."""
        return len(list(self.folder.glob(f"artifacts/corpus/*/unfinished/{part:05d}/*.piece")))

    def killed(self, process: subprocess.Popen[bytes]) -> None:
        """Kill Snakemake as hard as can be."""
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    """The study, run on this machine while the first cluster test works; its `process` ends."""
    study = Study(tmp_path_factory.mktemp("local") / "checkout")
    study.process = study.start(None)
    yield study
    if study.process.poll() is None:
        study.process.terminate()
        study.process.wait()
