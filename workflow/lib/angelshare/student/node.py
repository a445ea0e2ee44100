"""What starts a training's processes on one node: ``python -m angelshare.student.node FOLDER``.

On a node that the job did not start on, their energy is nobody's yet; so where there are several
nodes each opens a window of its own within the job's, which counts no device twice.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from contextlib import nullcontext
from pathlib import Path

import torch
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from angelshare.energy.enclosing import ENCLOSING
from angelshare.energy.joining import rank_window
from angelshare.energy.windows import Terminated
from angelshare.errors import AngelshareError
from angelshare.student.exchange import Exchange, Launch

SAVING_LIMIT_S = 3600
"""What processes that were terminated have to save their checkpoint."""


def main(folder: Path) -> int:
    """Run this node's processes to their end; status 0 if all of them ended well.

    An end by signal is none of ours to judge: the job knows whether the processes had saved their
    work, and a bad status would have srun kill the other nodes' before they have.
    """
    exchange = Exchange(folder)
    launch = exchange.launch()
    number = int(os.environ.get("SLURM_NODEID", "0")) if launch.nodes > 1 else 0
    threading.Thread(target=_end_with_the_job, daemon=True).start()
    joins = launch.nodes > 1 and ENCLOSING in os.environ
    try:
        check_devices(launch.processes, torch.cuda.device_count())
        with rank_window() if joins else nullcontext():
            _run(_arguments(launch, number, folder))
    except Terminated:
        return 0
    except ChildFailedError:
        return 1  # the process has left its error
    except Exception as error:
        exchange.fail(f"node {number} ({socket.gethostname()})", error)
        raise
    return 0


def _run(arguments: list[str]) -> None:
    try:
        torchrun.main(arguments)
    except SignalException as ended:
        raise Terminated(int(ended.sigval)) from ended


def check_devices(processes: int, visible: int) -> None:
    """Raise ``AngelshareError`` unless each process can have a GPU of its own, or there is none."""
    if visible and visible < processes:
        raise AngelshareError(
            f"{processes} processes are to train on {socket.gethostname()}, one per GPU, but only "
            f"{visible} GPUs are visible there (CUDA_VISIBLE_DEVICES is "
            f"{os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')}): lower gpus of the student or "
            "of hardware, or run where there are as many"
        )


def _arguments(launch: Launch, number: int, folder: Path) -> list[str]:
    meeting = ["--standalone"]
    if launch.nodes > 1:
        meeting = [
            f"--nnodes={launch.nodes}",
            f"--node-rank={number}",
            f"--master-addr={launch.address}",
            f"--master-port={launch.port}",
        ]
    return [
        *meeting,
        f"--nproc-per-node={launch.processes}",
        f"--shutdown-timeout={SAVING_LIMIT_S}",
        *("-m", "angelshare.student.rank", str(folder)),
    ]


def _end_with_the_job() -> None:
    """A job that is killed closes its end of our input: what it started must not outlive it."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
