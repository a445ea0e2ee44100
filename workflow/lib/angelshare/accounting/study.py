"""What the tables are made from: runs, shared artifacts, scores and folders of attempt records.

Plain frozen values that a script fills from manifests, consumer records and scores, so that every
function of this room is pure. A shared artifact's consumers span all teams; this team's are those
whose team is the study's and whose run is one of the study's runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from angelshare.errors import AngelshareError

TEACHER_KINDS = frozenset({"logits", "states", "corpus", "scores", "answers", "judgements"})
"""Kinds of artifacts that teacher work makes: a run that reads one is a distilled run."""


@dataclass(frozen=True, slots=True)
class AttemptSource:
    """A folder of attempt records and whose bill they are on: a run's, an artifact's, or nobody's.

    Every `*.json` in the folder is one attempt, valid energy-sidecar/1.
    """

    folder: Path
    run: str | None = None
    artifact_kind: str | None = None
    artifact_key: str | None = None


@dataclass(frozen=True, slots=True)
class Consumer:
    """One student run, of any team, that read a shared artifact."""

    id: str
    run: str
    team: str
    tokens_read: int
    utc: str


@dataclass(frozen=True, slots=True)
class Artifact:
    """A shared artifact. `charged=False` keeps it in the ledger and off every run's bill."""

    kind: str
    key: str
    label: str
    tokens: int
    bytes: int
    charged: bool = True
    consumers: tuple[Consumer, ...] = ()

    @property
    def of_teacher(self) -> bool:
        """Whether it is teacher work that runs pay for: an assistant's training is."""
        return self.kind in TEACHER_KINDS or (self.kind == "model" and self.charged)

    @property
    def id(self) -> tuple[str, str]:
        """Kind and key: what names the artifact everywhere."""
        return (self.kind, self.key)


@dataclass(frozen=True, slots=True)
class Run:
    """One student run of this team.

    `artifacts` are all shared artifacts it stands on, direct and indirect; `tokens` the tokens it
    was trained on; `parameters`, where known, orders students by size; `teacher_scores` names the
    artifact that its scores are compared with, whether or not it is on the run's bill;
    `inference_batch_size` is how many requests its evaluation answered at once; `trained_as` names
    the run whose model this one scores in another precision (`angelshare.accounting.points`);
    `teacher_online` says that a teacher lay in memory while it was trained.
    """

    run: str
    pipeline: str
    student: str
    dataset: str
    seed: int
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    artifacts: tuple[tuple[str, str], ...] = ()
    tokens: int = 0
    parameters: int | None = None
    teacher_scores: tuple[str, str] | None = None
    inference_batch_size: int | None = None
    trained_as: str | None = None
    teacher_online: bool = False

    @property
    def payer(self) -> str:
        """The run whose training and shares this point carries: its own, as a rule."""
        return self.trained_as or self.run


@dataclass(frozen=True, slots=True)
class Score:
    """A run's score on a benchmark, with the teacher's on the same problems.

    `in_quality=False` keeps a measure for which student / teacher says nothing (a cross-entropy)
    out of Q; it still gets its column. `teacher_source` is `measured`, or what a teacher's score is
    cited from.
    """

    run: str
    benchmark: str
    score: float
    stderr: float | None = None
    teacher_score: float | None = None
    teacher_stderr: float | None = None
    teacher_source: str = "measured"
    in_quality: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a plan expected of a job before it ran; joules and seconds with 95 % bounds."""

    plan_utc: str
    hardware: str
    job: str
    stage: str
    basis: str
    fit: str
    energy_j: float
    energy_low_j: float
    energy_high_j: float
    duration_s: float
    duration_low_s: float
    duration_high_s: float


@dataclass(frozen=True, slots=True)
class Study:
    """All that one accounting is made from. Raises AngelshareError where it contradicts itself."""

    team: str
    runs: tuple[Run, ...]
    artifacts: tuple[Artifact, ...] = ()
    scores: tuple[Score, ...] = ()
    sources: tuple[AttemptSource, ...] = ()
    predictions: tuple[Prediction, ...] = ()

    def __post_init__(self) -> None:
        if not self.runs:
            raise AngelshareError("the study holds no run: there is nothing to account for")
        runs = {run.run for run in self.runs}
        artifacts = {artifact.id for artifact in self.artifacts}
        _unique("run", (run.run for run in self.runs))
        _unique("artifact", (f"{kind}/{key}" for kind, key in (a.id for a in self.artifacts)))
        _unique("score", (f"{score.run} on {score.benchmark}" for score in self.scores))
        _unique("attempt folder", (str(source.folder) for source in self.sources))
        for artifact in self.artifacts:
            _unique(
                f"consumer of {artifact.kind}/{artifact.key}", (c.id for c in artifact.consumers)
            )
        for run in self.runs:
            for kind, key in run.artifacts:
                if (kind, key) not in artifacts:
                    raise AngelshareError(
                        f"run {run.run} names the artifact {kind}/{key}, which the study does not "
                        "hold: add it to the study's artifacts (its manifest may be missing)"
                    )
        for run in self.runs:
            _known(f"run {run.run}", run.payer, runs)
        for score in self.scores:
            _known("score", score.run, runs)
        for source in self.sources:
            self._check_source(source, runs, artifacts)

    @staticmethod
    def _check_source(
        source: AttemptSource, runs: set[str], artifacts: set[tuple[str, str]]
    ) -> None:
        if source.run is not None and source.artifact_kind is not None:
            raise AngelshareError(
                f"{source.folder}: attempts belong either to run {source.run} or to an artifact "
                f"({source.artifact_kind}), not to both: an energy is charged once"
            )
        if source.run is not None:
            _known(f"attempt folder {source.folder}", source.run, runs)
        owner = (source.artifact_kind or "", source.artifact_key or "")
        if source.artifact_kind is not None and owner not in artifacts:
            raise AngelshareError(f"{source.folder}: the study holds no artifact {'/'.join(owner)}")


def _known(what: str, run: str, runs: set[str]) -> None:
    if run not in runs:
        raise AngelshareError(f"{what} names the run {run}, which the study does not hold")


def _unique(what: str, names: Iterable[str]) -> None:
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise AngelshareError(f"the study holds a {what} twice: {', '.join(twice[:3])}")
