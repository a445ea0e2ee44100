"""Resuming: which checkpoint a run may continue from, and what it says.

The Trainer writes `trainer_state.json` last, so a checkpoint without a readable one was cut off by
a kill and is removed. The request's digest beside the checkpoints says which run they belong to;
those of any other run are discarded.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from angelshare.files import publish_json, read_json

REQUEST_NAME = "request.json"


def newest_checkpoint(folder: Path, request_digest: str) -> Path | None:
    """The newest whole checkpoint of this request in ``folder``, which is made if need be.

    Whatever else lies there (remains of other requests, half-written checkpoints) is removed.
    """
    marker = folder / REQUEST_NAME
    if folder.exists() and (
        not marker.exists() or read_json(marker).get("sha256") != request_digest
    ):
        shutil.rmtree(folder)
    publish_json(marker, {"sha256": request_digest})
    for path in sorted(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=_step, reverse=True):
        if _is_whole(path):
            return path
        shutil.rmtree(path)
    return None


def checkpoint_of(folder: Path, step: int) -> Path:
    """Where the Trainer keeps the checkpoint of ``step``."""
    return folder / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def read_state(checkpoint: Path) -> TrainerState:
    """The Trainer's state at a checkpoint."""
    state: TrainerState = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    return state


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def _is_whole(checkpoint: Path) -> bool:
    try:
        read_state(checkpoint)
    except (OSError, ValueError):
        return False
    return True
