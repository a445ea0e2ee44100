"""One of the processes that train a student together, as torchrun starts them:
``python -m angelshare.student.rank FOLDER``.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from angelshare.student.callbacks import Interrupted
from angelshare.student.exchange import Exchange
from angelshare.student.ranks import Ranks
from angelshare.student.requests import TrainRequest
from angelshare.student.train import train_student

PATIENCE = timedelta(hours=1)
"""For a process that works alone, such as the first one while it writes a checkpoint."""


def main(folder: Path) -> None:
    """Train with the others; an end that was asked for is no error."""
    terminated: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: terminated.append(number))
    exchange, number = Exchange(folder), int(os.environ["RANK"])
    try:
        ranks = _meet(number)
        _train(exchange, ranks, terminated)
        dist.destroy_process_group()
    except Exception as error:
        exchange.fail(f"process {number} on {socket.gethostname()}", error)
        raise


def _meet(number: int) -> Ranks:
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE)
    through_cpu = dist.new_group(backend="gloo", timeout=PATIENCE)
    return Ranks(number, dist.get_world_size(), through_cpu)


def _train(exchange: Exchange, ranks: Ranks, terminated: list[int]) -> None:
    def progress(step: int, of: int, text: str) -> None:
        if ranks.is_first:
            exchange.say(progress=[step, of, text])

    def count(**amounts: Any) -> None:
        if ranks.is_first:
            exchange.say(count=amounts)

    def stop() -> bool:
        return bool(terminated) or (ranks.is_first and exchange.asked_to_stop())

    try:
        request = TrainRequest.load(exchange.folder)
        result = train_student(request, progress, count, stop, ranks)
        if ranks.is_first:
            exchange.finish(result.to_json())
    except Interrupted as interruption:
        if ranks.is_first:
            exchange.say(interrupted=str(interruption))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
