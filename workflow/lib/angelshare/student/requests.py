"""A request for a student: what decides it, and its form as files that other processes read."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from angelshare.files import publish_json, read_json
from angelshare.student.settings import (
    LoraSettings,
    LossSettings,
    OnPolicySettings,
    PretrainedStudent,
    ScratchStudent,
    StudentInit,
    TrainingSettings,
)

TABLES = ("train", "validation")


@dataclass(frozen=True, slots=True, kw_only=True)
class OnPolicyRequest:
    """A teacher to be loaded beside the student, and what is done with it."""

    settings: OnPolicySettings
    model: str
    """Folder or hub name."""
    revision: str | None = None
    """The hub commit, for a hub name."""
    trust_remote_code: bool = False
    identity: str
    """What checkpoints know it by, wherever it lies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a teacher read what its cache is of."""

    tokenizer: Path | str
    """Folder or hub name."""
    revision: str | None = None
    """The hub commit, for a hub name."""
    trust_remote_code: bool = False
    max_length: int
    """Tokens, its own, after which a sequence was cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Further rows to train on, with what their own teacher said of them."""

    train: pa.Table
    """Sequence table; its ids need not differ from those of others."""
    cache: Sequence[Path] = ()
    """Part files of the logit cache over ``train``, in order; none where the request has none."""
    readings: Sequence[Reading] = ()
    """How that teacher read, where the request says it of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    """Everything that decides a student, and where it goes."""

    init: ScratchStudent | PretrainedStudent
    lora: LoraSettings | None = None
    """The update that is trained instead of all weights."""
    training: TrainingSettings
    loss: LossSettings
    """Its terms count where there is a ``cache``, an ``on_policy`` or ``states`` for them."""
    tokenizer: Path | str
    """Folder or hub name."""
    tokenizer_revision: str | None = None
    """The hub commit, for a hub name."""
    train: pa.Table
    """Sequence table; all of its rows are trained on."""
    validation: pa.Table
    """Sequence table of the validation split."""
    cache: Sequence[Path] = ()
    """Part files of the logit cache over ``train``, in order; none: hard labels alone."""
    states: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    """Part files of the teacher's hidden states over ``train``, by role: features, relations."""
    other_caches: Sequence[Sequence[Path]] = ()
    """Those of further teachers, whose divergences are mixed with the first one's."""
    weights: Sequence[float] = (1.0,)
    """Of the teachers' divergences, that of ``cache`` first; they sum to 1."""
    readings: Sequence[Reading] = ()
    """How each teacher read, in the same order, where the loss compares across tokenizers; none:
    all of them read as the student does."""
    further: Sequence[Source] = ()
    """Rows of other datasets that are trained on as those of ``train`` are."""
    on_policy: OnPolicyRequest | None = None
    """Instead of a ``cache``: a teacher in memory, and answers of the student itself. A request for
    one process, which `save` therefore does not write."""
    seed: int
    """Decides first weights, the order of the data and the student's own answers."""
    out: Path
    """Folder of the finished model."""
    checkpoints: Path
    """Folder to resume from; whoever keeps the result removes it."""

    @property
    def roles(self) -> list[str]:
        """What of a teacher its loss reads."""
        others = {"logits": self.cache, "on_policy": self.on_policy}
        return [*self.states, *(role for role, read in others.items() if read)]

    def save(self, folder: Path) -> None:
        """Write what a process on any node needs to do as this one would.

        A local tokenizer is copied, for it may lie in a node's own temporary folder; other paths
        become absolute.
        """
        for name in TABLES:
            pq.write_table(getattr(self, name), folder / f"{name}.parquet")
        further = []
        for number, source in enumerate(self.further, start=2):
            pq.write_table(source.train, folder / f"train_{number}.parquet")
            cache = [str(path.absolute()) for path in source.cache]
            further.append({"cache": cache, "readings": _kept(source.readings, folder, number)})
        local = isinstance(self.tokenizer, Path)
        if local:
            shutil.copytree(self.tokenizer, folder / "tokenizer")
        publish_json(
            folder / "request.json",
            {
                "init": self.init.model_dump(mode="json"),
                "lora": self.lora and self.lora.model_dump(mode="json"),
                "training": self.training.model_dump(mode="json"),
                "loss": self.loss.model_dump(mode="json"),
                "tokenizer": None if local else self.tokenizer,
                "tokenizer_revision": self.tokenizer_revision,
                "cache": [str(path.absolute()) for path in self.cache],
                "states": {
                    role: [str(path.absolute()) for path in paths]
                    for role, paths in self.states.items()
                },
                "other_caches": [
                    [str(path.absolute()) for path in paths] for paths in self.other_caches
                ],
                "weights": list(self.weights),
                "readings": _kept(self.readings, folder, 1),
                "further": further,
                "seed": self.seed,
                "out": str(self.out.absolute()),
                "checkpoints": str(self.checkpoints.absolute()),
            },
        )

    @classmethod
    def load(cls, folder: Path) -> TrainRequest:
        """What `save` wrote."""
        said = read_json(folder / "request.json")
        return cls(
            init=TypeAdapter(StudentInit).validate_python(said["init"]),
            lora=said["lora"] and LoraSettings.model_validate(said["lora"]),
            training=TrainingSettings.model_validate(said["training"]),
            loss=LossSettings.model_validate(said["loss"]),
            tokenizer=said["tokenizer"] or folder / "tokenizer",
            tokenizer_revision=said["tokenizer_revision"],
            train=pq.read_table(folder / "train.parquet"),
            validation=pq.read_table(folder / "validation.parquet"),
            cache=[Path(path) for path in said["cache"]],
            states={role: list(map(Path, paths)) for role, paths in said["states"].items()},
            other_caches=[[Path(path) for path in paths] for paths in said["other_caches"]],
            weights=said["weights"],
            readings=list(map(_reading, said["readings"])),
            further=[
                Source(
                    train=pq.read_table(folder / f"train_{number}.parquet"),
                    cache=list(map(Path, one["cache"])),
                    readings=list(map(_reading, one["readings"])),
                )
                for number, one in enumerate(said["further"], start=2)
            ],
            seed=said["seed"],
            out=Path(said["out"]),
            checkpoints=Path(said["checkpoints"]),
        )


def _kept(readings: Sequence[Reading], folder: Path, number: int) -> list[dict[str, Any]]:
    """Readings as plain values; local tokenizers are copied into ``folder``."""
    kept = []
    for place, one in enumerate(readings, start=1):
        local = isinstance(one.tokenizer, Path)
        own = folder.absolute() / f"reading_{number}_{place}"
        if local:
            shutil.copytree(one.tokenizer, own)
        named = {"tokenizer": str(own if local else one.tokenizer), "local": local}
        kept.append(asdict(one) | named)
    return kept


def _reading(said: dict[str, Any]) -> Reading:
    """One of those that `_kept` wrote."""
    local = said.pop("local")
    return Reading(**said | ({"tokenizer": Path(said["tokenizer"])} if local else {}))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What came out, as plain values."""

    steps: int
    """Optimizer steps made."""
    best_step: int
    """The step whose weights were kept."""
    cross_entropy: float
    """Validation cross-entropy of the kept weights, nats per target token."""
    untrained_cross_entropy: float
    """The same before the first step."""
    stopped_early: bool
    """Whether patience ran out before the schedule did."""
    parameters: int
    """Weights of the published model, tied ones once."""
    trained_parameters: int
    """Weights that the optimizer changed: fewer where a low-rank update was trained."""
    trained_tokens: int
    """Tokens that went through training passes, prompts included, padding excluded."""
    train_rows: int
    """Sequences trained on."""
    dropped_rows: int
    """Training rows without a target within ``max_length``."""
    sources: list[float]
    """The share of the training rows' tokens that each of the run's datasets has."""
    paired: list[float]
    """Share of the target tokens that follow the same text as one of the teacher's, by teacher;
    none where all read alike."""
    history: list[dict[str, float]]
    """By step: train_loss, learning_rate, gradient_norm and, where evaluated, cross_entropy."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)
