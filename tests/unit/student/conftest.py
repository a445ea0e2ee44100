"""A small world to train in: word problems, their tokenizer, and logit caches of any model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from angelshare.data.problems import make_dataset
from angelshare.data.sequences import EncodedRow
from angelshare.data.settings import WordProblems
from angelshare.data.tables import in_splits
from angelshare.data.tokenizer import save_tokenizer, tokenizer_digest, train_tokenizer
from angelshare.student.dataset import EncodedDataset
from angelshare.student.requests import TrainRequest
from angelshare.student.settings import (
    LossSettings,
    OptimizerSettings,
    ScratchStudent,
    TrainingSettings,
)
from angelshare.teacher.cache import CacheInfo, write_cache
from angelshare.teacher.codecs.rows import CachedTargets
from angelshare.teacher.codecs.topk_tail import TopkTail
from angelshare.teacher.models import load_tokenizer

GRID = (1.0, 2.0, 4.0)
KEPT = 8
MAX_LENGTH = 64


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def problems() -> pa.Table:
    """A sequence table with 48 training and 16 validation rows."""
    return make_dataset(WordProblems(labelled=48, unlabelled=4, validation=16, test=4))


@pytest.fixture(scope="session")
def tokenizer_folder(problems: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [m["content"] for messages in problems["messages"].to_pylist() for m in messages]
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(texts, 160, MAX_LENGTH), folder)
    return folder


def encoded_rows(table: pa.Table, tokenizer_folder: Path) -> list[EncodedRow]:
    return EncodedDataset(table, load_tokenizer(tokenizer_folder), MAX_LENGTH).rows


def position_logits(model: torch.nn.Module, row: EncodedRow) -> torch.Tensor:
    """Logits [n, V] that predict the targets of a row, computed for it alone."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row.encoded.input_ids])).logits[0]
    positions = [t - 1 for t, target in enumerate(row.encoded.targets) if target]
    return logits[positions]


def write_cache_of(
    model: torch.nn.Module, tokenizer: Path, rows: Sequence[EncodedRow], path: Path
) -> None:
    """The logit cache of ``model``, which reads with ``tokenizer``, over ``rows``."""
    cached = []
    for row in rows:
        relative = position_logits(model, row).double().log_softmax(-1)
        gold = [
            i
            for i, target in zip(row.encoded.input_ids, row.encoded.targets, strict=True)
            if target
        ]
        values, ids = relative.topk(KEPT, dim=-1)
        partitions = torch.stack([(relative / t).logsumexp(-1) for t in GRID], -1)
        rest = relative.scatter(-1, ids, -torch.inf)
        tails = torch.stack([(rest / t).logsumexp(-1) for t in GRID], -1)
        cached.append(
            CachedTargets(
                id=row.id,
                tokens_sha256=row.encoded.sha256,
                kept=np.full(len(ids), KEPT, np.int32),
                token_ids=ids.int().numpy().ravel(),
                logits=values.float().numpy().ravel(),
                log_partition=partitions.float().numpy(),
                log_tail=tails.float().numpy(),
                gold_logprob=relative.gather(-1, torch.tensor(gold)[:, None])[:, 0].float().numpy(),
                entropy=-(relative.exp() * relative).sum(-1).float().numpy(),
            )
        )
    info = CacheInfo(
        codec=TopkTail(top_k=KEPT, top_p=1.0),
        temperatures=GRID,
        vocab_size=relative.shape[-1],
        tokenizer_sha256=tokenizer_digest(load_tokenizer(tokenizer)),
        sequences=len(cached),
        targets=sum(len(row.gold_logprob) for row in cached),
    )
    write_cache(path, cached, info)


@pytest.fixture
def make_request(
    problems: pa.Table, tokenizer_folder: Path, tmp_path: Path
) -> Callable[..., TrainRequest]:
    """A request for a tiny student; keyword arguments replace training settings or fields."""

    def make(
        name: str = "run", optimizer: str = "adamw", lr: float = 1e-2, **changes: Any
    ) -> TrainRequest:
        training = {
            "max_steps": 12,
            "warmup_steps": 2,
            "batch_size": 8,
            "accumulation": 1,
            "eval_batch_size": 5,
            "eval_every": 4,
            "max_length": MAX_LENGTH,
            "optimizer": OptimizerSettings(name=optimizer, learning_rate=lr),
        }
        training |= {
            key: changes.pop(key) for key in list(changes) if key in TrainingSettings.model_fields
        }
        fields: dict[str, Any] = {
            "init": ScratchStudent(hidden_size=16, layers=1, heads=2, intermediate_size=24),
            "training": TrainingSettings.model_validate(training),
            "loss": LossSettings(),
            "tokenizer": tokenizer_folder,
            "train": in_splits(problems, ["train"]),
            "validation": in_splits(problems, ["validation"]),
            "seed": 3,
            "out": tmp_path / name / "model",
            "checkpoints": tmp_path / name / "checkpoints",
        }
        return TrainRequest(**{**fields, **changes})

    return make


class Tally:
    """Adds up what a run counts."""

    def __init__(self) -> None:
        self.totals: dict[str, int] = {}

    def __call__(self, **amounts: int) -> None:
        for name, amount in amounts.items():
            self.totals[name] = self.totals.get(name, 0) + amount
