"""Several processes train what one would: real torchrun, gloo, FSDP, on one "node" and on two."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.elastic.multiprocessing.api import SignalException

from angelshare.energy import Job, window
from angelshare.energy.settings import EnergySettings
from angelshare.errors import AngelshareError
from angelshare.student import node
from angelshare.student.callbacks import Interrupted
from angelshare.student.exchange import Exchange, Launch
from angelshare.student.launch import train_on
from angelshare.student.node import check_devices
from angelshare.student.order import NOTHING, Passes
from angelshare.student.requests import TrainRequest, TrainResult
from angelshare.student.settings import LossSettings, TrainingSettings

from .conftest import Tally, encoded_rows, write_cache_of

Make = Callable[..., TrainRequest]
SRUN = """#!{python}
import os, subprocess, sys
nodes = next(int(a.split("=")[1]) for a in sys.argv if a.startswith("--nodes="))
command = sys.argv[next(i for i, a in enumerate(sys.argv) if a == sys.executable):]
started = [
    subprocess.Popen(command, env={{**os.environ, "SLURM_NODEID": str(n), "SLURM_PROCID": str(n),
                                    "SLURM_STEP_NUM_TASKS": str(nodes)}})
    for n in range(nodes)
]
sys.exit(max(process.wait() for process in started))
"""
"""What Slurm's srun does for us, on this machine: one task a node, numbered."""


def close(one: TrainResult, other: TrainResult) -> None:
    """The same results up to rounding."""
    assert [h.keys() for h in one.history] == [h.keys() for h in other.history]
    for here, there in zip(one.history, other.history, strict=True):
        assert here == pytest.approx(there, rel=1e-4)
    first, second = (r.to_json() for r in (one, other))
    del first["history"], second["history"]
    for name in ("sources", "paired"):
        assert first.pop(name) == pytest.approx(second.pop(name), rel=1e-5)
    assert first == pytest.approx(second, rel=1e-5)


def close_weights(one: TrainRequest, other: TrainRequest) -> None:
    names = sorted(path.name for path in one.out.iterdir())
    assert names == sorted(path.name for path in other.out.iterdir())
    assert (one.out / "config.json").read_text() == (other.out / "config.json").read_text()
    first, second = (load_file(request.out / "model.safetensors") for request in (one, other))
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-5)


def distilling(make: Make, tmp_path: Path) -> Callable[[str], TrainRequest]:
    """Requests with a teacher's cache, whose epochs end with a step of a single row."""
    seed = make("teacher")
    rows = seed.train.slice(0, 33)
    from angelshare.student.models import make_student
    from angelshare.teacher.models import load_tokenizer

    teacher = make_student(seed.init, load_tokenizer(seed.tokenizer), 64, 9)
    cache = tmp_path / "cache.parquet"
    write_cache_of(teacher, Path(seed.tokenizer), encoded_rows(rows, Path(seed.tokenizer)), cache)
    return lambda name: make(
        name,
        "adafactor",
        train=rows,
        cache=[cache],
        loss=LossSettings(alpha=0.2, temperature=2.0),
        max_steps=5,
        eval_every=2,
        batch_size=8,
        accumulation=2,
    )


def test_two_processes_two_nodes_and_a_resumed_run_train_what_one_does(
    make_request: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each launch starts interpreters that import torch and transformers, so there are two: of two
    processes on a node, which are stopped, and on two nodes, which go on from there."""
    make = distilling(make_request, tmp_path)
    alone, several, resumed = (make(name) for name in ("one", "several", "again"))
    counted, shared, said = Tally(), Tally(), []
    one = train_on(1, 1, alone, lambda *_: None, counted)
    with pytest.raises(Interrupted, match="stopped at step 1 of 5, with a checkpoint"):
        train_on(1, 2, several, lambda *_: None, shared, lambda: True)
    assert shared.totals["steps"] == 1
    shutil.copytree(several.checkpoints, resumed.checkpoints)
    close(one, train_on(1, 1, resumed, lambda *_: None, Tally()))
    close_weights(alone, resumed)

    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text(SRUN.format(python=sys.executable))
    srun.chmod(srun.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{srun.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    job = Job(
        rule="train_student",
        stage="student_train",
        role="student",
        sidecar=tmp_path / "energy.json",
        attempts=tmp_path / "attempts",
        gpus=0,
    )
    with window(job, EnergySettings(gpu="none", cpu="estimate", cpu_tdp_w=100.0)):
        close(one, train_on(2, 1, several, lambda *line: said.append(line), shared))
    close_weights(alone, several)
    assert shared.totals == counted.totals
    assert said[-1][:2] == (5, 5)
    assert not list(several.checkpoints.parent.glob("*.processes"))
    record = json.loads(job.sidecar.read_text())
    assert [rank.get("rank") for rank in record["ranks"]] == [None, 0, 1]
    assert {rank["status"] for rank in record["ranks"]} == {"ok"}
    assert record["record"]["complete"]


def test_the_error_of_a_process_is_that_of_the_training(make_request: Make) -> None:
    request = make_request("bad", warmup_steps=50)
    with pytest.raises(AngelshareError, match=r"process [01] on .*: warmup_steps is 50, the whole"):
        train_on(1, 2, request, lambda *_: None, Tally())


def test_several_nodes_need_slurm(make_request: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(AngelshareError, match="no Slurm job: set its nodes to 1"):
        train_on(2, 1, make_request(), lambda *_: None, Tally())


def test_a_clear_error_comes_before_the_failures_it_led_to(tmp_path: Path) -> None:
    exchange = Exchange(tmp_path)
    assert exchange.failure() is None
    exchange.fail("process 0 on a", RuntimeError("connection closed by peer"))
    exchange.fail("process 1 on b", AngelshareError("the loss is not finite"))
    exchange.fail("process 2 on b", AngelshareError("later"))
    assert exchange.failure() == "process 1 on b: the loss is not finite"


def test_agents_that_are_told_to_end_are_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def terminated(arguments: list[str]) -> None:
        raise SignalException("told to end", signal.SIGTERM)

    exchange = Exchange(tmp_path)
    exchange.start(Launch(nodes=1, processes=2, address="here", port=1))
    monkeypatch.setattr(node.torchrun, "main", terminated)
    monkeypatch.setattr(node, "_end_with_the_job", lambda: None)
    assert node.main(tmp_path) == 0
    assert exchange.failure() is None


def test_every_process_has_a_gpu_of_its_own_or_none_has() -> None:
    check_devices(4, 0)
    check_devices(4, 4)
    with pytest.raises(AngelshareError, match=r"4 processes .* only 2 GPUs are visible"):
        check_devices(4, 2)


@pytest.mark.parametrize(
    ("processes", "expected"), [(1, (4, 16)), (2, (4, 8)), (16, (4, 1)), (32, (2, 1)), (64, (1, 1))]
)
def test_processes_share_the_rows_of_a_step(processes: int, expected: tuple[int, int]) -> None:
    assert TrainingSettings(batch_size=4, accumulation=16).divided(processes) == expected


def test_rows_that_cannot_be_shared_evenly_name_the_nearest_numbers() -> None:
    with pytest.raises(AngelshareError, match=r"3 processes .* the 64 sequences .*: use 2 or 4"):
        TrainingSettings(batch_size=4, accumulation=16).divided(3)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_step_reads_the_same_rows_whoever_shares_them(world: int) -> None:
    def steps(world: int) -> list[list[int]]:
        """The rows of each of an epoch's steps, 37 rows in steps of 16."""
        batch, accumulation = TrainingSettings(batch_size=4, accumulation=4).divided(world)
        passes = [
            Passes(37, batch=batch, accumulation=accumulation, rank=rank, world=world, seed=3)
            for rank in range(world)
        ]
        for one in passes:
            one.set_epoch(2)
        read = [list(one) for one in passes]
        assert {len(one) for one in read} == {len(one) for one in passes} == {len(passes[0])}
        found = []
        for begin in range(0, len(read[0]), accumulation):
            rows = [i for one in read for batch in one[begin : begin + accumulation] for i in batch]
            found.append(sorted(i for i in rows if i != NOTHING))
        return found

    assert steps(world) == steps(1)
    assert sorted(i for step in steps(world) for i in step) == list(range(37))
