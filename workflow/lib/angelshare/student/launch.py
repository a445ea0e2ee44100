"""Training a student with as many processes as the job was given, on one node or several.

One process trains within the job's own. More are started by torchrun, one agent per node, and run
the same function with the model sharded over them (`sharding`); on several nodes it is Slurm's
``srun`` that starts the agents. Whoever calls sees no difference: progress, counts, the wish to
stop, the result and the first error all pass through an `Exchange`.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import angelshare
from angelshare.energy.phases import Phase, unmetered
from angelshare.errors import AngelshareError
from angelshare.student.callbacks import Count, Interrupted, Progress
from angelshare.student.exchange import Exchange, Launch
from angelshare.student.requests import TrainRequest, TrainResult

POLL_S = 0.2
OWN_SLURM_VARIABLES = ("SLURM_JOB_ID", "SLURM_JOBID", "SLURM_CONF", "SLURM_CLUSTER_NAME")
"""What an inner srun may know of the step it is called in: the allocation, not the step's share."""


def train_on(
    nodes: int,
    processes: int,
    request: TrainRequest,
    progress: Progress,
    count: Count,
    stop: Callable[[], bool] = lambda: False,
    phase: Phase = unmetered,
) -> TrainResult:
    """Train ``request`` with so many processes on each of so many nodes.

    Else as `angelshare.student.train.train_student`. An optimizer step has the same rows whatever
    the number of processes. Raises ``AngelshareError`` with the first error of any process, for a
    number that cannot share the rows of a step evenly, for several nodes outside Slurm, and for
    several processes where a teacher is in memory.
    """
    if nodes * processes == 1:
        from angelshare.student.train import train_student

        return train_student(request, progress, count, stop, phase=phase)
    if request.on_policy is not None:
        raise AngelshareError(
            "a student with a teacher in memory (on_policy) is trained by one process: set its "
            "gpus to 1 and nodes to 1"
        )
    request.training.divided(nodes * processes)
    address, port = socket.gethostname(), _free_port()
    launch = Launch(nodes=nodes, processes=processes, address=address, port=port)
    with _exchange(request) as exchange:
        request.save(exchange.folder)
        exchange.start(launch)
        status = _follow(_start(launch, exchange), exchange, progress, count, stop)
        result = exchange.result()
        if status == 0 and result is not None:
            return TrainResult(**result)
        raise AngelshareError(
            exchange.failure()
            or f"the processes that train ended with status {status} and left no error: one of "
            "them was killed, probably for want of memory. See the job's log"
        )


@contextmanager
def _exchange(request: TrainRequest) -> Iterator[Exchange]:
    """A folder beside the checkpoints, which all nodes see; what an earlier job left there goes."""
    folder = request.checkpoints.with_name(f"{request.checkpoints.name}.processes").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield Exchange(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(launch: Launch, exchange: Exchange) -> subprocess.Popen[bytes]:
    """Start the agents; they end when their input does."""
    agent = [sys.executable, "-m", "angelshare.student.node", str(exchange.folder)]
    library = str(Path(angelshare.__file__).parents[1])
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([library, os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": str(max(1, threads // launch.processes)),
    }
    if launch.nodes == 1:
        return subprocess.Popen(agent, stdin=subprocess.PIPE, env=environment)
    # Told to end, srun would leave its tasks a few seconds (KillWait) and then kill them. In a
    # session of its own it is not told with the job, and ends when its tasks have saved their work.
    return subprocess.Popen(
        [*_srun(launch.nodes, threads), *agent],
        stdin=subprocess.PIPE,
        start_new_session=True,
        env={
            name: value
            for name, value in environment.items()
            if not name.startswith(("SLURM_", "SRUN_")) or name in OWN_SLURM_VARIABLES
        },
    )


def _srun(nodes: int, threads: int) -> list[str]:
    """A step of one task on every node, beside the job's own step and with all that it has."""
    if "SLURM_JOB_ID" not in os.environ or shutil.which("srun") is None:
        raise AngelshareError(
            f"a student is to be trained on {nodes} nodes, but this is no Slurm job: set its nodes "
            "to 1, or run with --profile slurm"
        )
    return [
        "srun",
        f"--nodes={nodes}",
        f"--ntasks={nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={threads}",
        "--mem=0",
        "--overlap",
        "--kill-on-bad-exit=1",
    ]


def _follow(
    agents: subprocess.Popen[bytes],
    exchange: Exchange,
    progress: Progress,
    count: Count,
    stop: Callable[[], bool],
) -> int:
    """Pass on what is said, both ways, until the agents have ended; their exit status."""
    asked, interrupted = False, ""
    try:
        while True:
            ended = agents.poll() is not None
            for event in exchange.events():
                if "progress" in event:
                    progress(*event["progress"])
                elif "count" in event:
                    count(**event["count"])
                else:
                    interrupted = event["interrupted"]
            if ended and interrupted:
                raise Interrupted(interrupted)
            if ended:
                return agents.returncode
            if stop() and not asked:
                exchange.ask_to_stop()
                asked = True
            time.sleep(POLL_S)
    finally:
        _end(agents)


def _end(agents: subprocess.Popen[bytes]) -> None:
    """Let agents that are still at work end, which they do when their input does."""
    if agents.stdin is not None:
        agents.stdin.close()
    agents.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
