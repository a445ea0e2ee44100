"""The configuration: one typed model per section, the source of the defaults and of the schema.

The YAML files under ``config/`` are read into `Config`. Unknown keys, impossible values and names
that refer to nothing are one clear line each, before any job starts. `config/README.md`
and `config/schemas/config.schema.json` are generated from the same models.
"""

from __future__ import annotations

import getpass
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from angelshare.accounting.settings import AccountingSettings
from angelshare.config_checks import (
    dangling_names,
    explain,
    too_few_gpus,
    unquantised_engines,
    unusable_judges,
    unusable_paths,
)
from angelshare.data.settings import (
    AnswerFilter,
    BenchmarkSource,
    DataSource,
    OverlapSettings,
    TokenizerSettings,
)
from angelshare.distillable import cache_problems
from angelshare.energy.settings import CarbonSettings, EnergySettings
from angelshare.errors import AngelshareError
from angelshare.evaluation.judges.settings import JudgeSettings
from angelshare.evaluation.settings import EvaluationSettings
from angelshare.hardware import JUDGE_RULES, MODEL_RULES, HardwareSettings, JobResources, RuleName
from angelshare.planning.settings import BudgetSettings
from angelshare.plans import Lesson
from angelshare.recipes import digest
from angelshare.revisions import filled, missing
from angelshare.settings import Settings
from angelshare.store.artifacts import ArtifactStore
from angelshare.student.settings import (
    LoraSettings,
    LossSettings,
    OnPolicySettings,
    PretrainedStudent,
    StudentInit,
    TrainingSettings,
)
from angelshare.teacher.settings import (
    AssistantTeacher,
    CaptureSettings,
    CitedScore,
    DecodingSettings,
    PretrainedTeacher,
    StatesSettings,
    Teacher,
)


class StoreSettings(Settings):
    """Where teacher artifacts are kept and shared."""

    root: str = "artifacts"
    """The shared store. Several checkouts and teams may point at the same folder."""
    team: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=100)
    """Who this checkout's student runs belong to, in the amortisation over consumers. Null: the
    user and the checkout's folder, as a digest."""

    layers: list[str] = []
    """Stores that are read and never written, such as another group's: an artifact found there is
    used where it lies."""
    remotes: list[str] = []
    """Stores at any fsspec address (`s3://bucket/store`, a folder): what the store lacks and one of
    them has is fetched instead of made. The first one that has it counts."""

    def open(self) -> ArtifactStore:
        """The store, with its layers."""
        return ArtifactStore(Path(self.root), [Path(layer) for layer in self.layers])

    def team_id(self) -> str:
        """The name under which this checkout's runs are recorded as consumers."""
        if self.team:
            return self.team
        here = digest("angelshare/team", {"user": getpass.getuser(), "folder": os.getcwd()})
        return f"{getpass.getuser()}-{here[:8]}"


class TrainedTokenizer(TokenizerSettings):
    """A tokenizer that the workflow trains on generated word problems."""

    execution = frozenset({"dataset"})

    dataset: str
    """The entry of ``datasets`` whose kind of problem it is trained on; none of its own rows."""


class Student(Settings):
    """A student: where its weights come from, how it reads, and what trains it."""

    execution = frozenset({"gpus", "nodes"})

    init: StudentInit
    """From scratch, or pretrained weights."""
    tokenizer: str | None = None
    """For a student from scratch: the entry of ``tokenizers`` it reads with."""
    tokenizer_of: str | None = None
    """For a pretrained student: the entry of ``teachers`` whose tokenizer and chat template it
    reads with, as base models do that have no template. Null: it brings its own."""
    gpus: int | None = Field(default=None, ge=0)
    """GPUs that train it, on each node, one process for each, the model sharded over all of them;
    null: those that ``hardware`` gives to ``train_student``. Where a machine has no GPU, as many
    processes on the CPU. No recipe holds it: the result differs by rounding alone."""
    nodes: int = Field(default=1, gt=0)
    """Nodes of a Slurm cluster that train it together."""
    lora: LoraSettings | None = None
    """For a pretrained student: train a low-rank update instead of the weights. By one process."""
    quantised: Literal["int8"] | None = None
    """Score and meter each of its models in this precision too: one more point of the frontier, of
    the same training. ``int8``: weights and activations of the blocks' linear layers (torchao)."""

    @model_validator(mode="after")
    def _lora_of_weights(self) -> Student:
        if self.lora and not isinstance(self.init, PretrainedStudent):
            raise ValueError("without lora where init is from scratch: random weights need it all")
        return self


class PipelineSettings(Settings):
    """What a pipeline trains on. The trainer is the same for all of them."""

    data: Literal["dataset", "corpus"]
    """Original labels, or the teacher's answers to the dataset's prompts."""
    logits: bool = False
    """Whether the loss also reads the teacher's cached distribution over that data."""
    features: str | None = None
    """A name from ``states``: the student's hidden states are drawn to these."""
    relations: str | None = None
    """A name from ``states``, of one vector a sequence: the distances and angles between the
    student's sequences are drawn to those between these."""
    loss: dict[str, Any] = {}
    """Changes to ``loss`` for this pipeline alone (``{divergence: uld}``)."""
    on_policy: OnPolicySettings | None = None
    """Instead of a cache: the student answers prompts of that data itself, and the teacher judges
    in memory while it is trained. Nothing of that is shared with another run."""

    @model_validator(mode="after")
    def _no_cache_of_other_answers(self) -> PipelineSettings:
        if self.on_policy and (self.logits or self.states):
            raise ValueError(
                "without logits, features and relations where it is on_policy: they are cached at "
                "the tokens of the data, and the teacher in memory reads the student's own"
            )
        return self

    @property
    def divergence(self) -> bool:
        """Whether the loss holds the student's distribution beside a teacher's."""
        return self.logits or self.on_policy is not None

    @property
    def states(self) -> dict[str, str]:
        """The entries of ``states`` that are read, by the role in which they are."""
        named = {"features": self.features, "relations": self.relations}
        return {role: name for role, name in named.items() if name is not None}

    @property
    def reads_teacher(self) -> bool:
        """Whether any of what it trains on is a teacher's work."""
        return self.data == "corpus" or self.divergence or bool(self.states)


class GridBlock(Settings):
    """A block of student runs: the product of its lists."""

    pipeline: str
    """A name from ``pipelines``."""
    students: list[str] = Field(min_length=1)
    """Names from ``students``."""
    datasets: list[str] = []
    """Names from ``datasets``; the runs of each are runs of their own."""
    teacher: str | None = None
    """A name from ``teachers``; needed by every pipeline that reads a teacher artifact."""
    teachers: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Instead of ``teacher``, several whose distributions are mixed, with weights that sum to 1.
    The first one answers prompts, and quality is relative to its scores."""
    routes: dict[str, str] = {}
    """Instead of ``datasets`` and ``teacher``: one run learns from all of these datasets, from each
    by the teacher that is named for it. It is scored on the first one's test split, and quality is
    relative to the first teacher's scores."""
    seeds: list[int] = Field(min_length=1)
    """One run for each."""
    temperature: list[Annotated[float, Field(gt=0)]] = Field(default=[], min_length=0)
    """Distillation temperatures; empty: the one of ``loss``."""
    alpha: list[Annotated[float, Field(ge=0, le=1)]] = []
    """Weights of the hard-label loss; empty: the one of ``loss``."""
    labelled: list[Annotated[int, Field(gt=0)]] = []
    """Rows of the dataset's ``train`` split; empty: the dataset's own number. Each number is a
    dataset of its own, the smaller one a subset of the larger, and the teacher works for each."""
    max_new_tokens: list[Annotated[int, Field(gt=0)]] = []
    """Longest answers of the teacher; empty: the one of ``generation``."""
    generation: dict[str, Any] = {}
    """Changes to ``generation`` for this block alone."""
    answers: dict[str, Any] = {}
    """Changes to ``answers`` for this block alone."""
    training: dict[str, Any] = {}
    """Changes to ``training`` for this block alone."""

    @property
    def taught_by(self) -> dict[str, float]:
        """The teachers with their weights, the first first; none where the block names none."""
        named = [*self.routes.values(), *([self.teacher] if self.teacher else [])]
        return self.teachers or dict.fromkeys(named, 1.0)

    @property
    def lessons(self) -> list[tuple[Lesson, ...]]:
        """What each of its runs learns from, whatever else varies."""
        if self.routes:
            routes = enumerate(self.routes.items(), start=1)
            return [tuple(Lesson(name, {whom: 1.0}, number) for number, (name, whom) in routes)]
        return [(Lesson(name, self.taught_by),) for name in self.datasets]

    @model_validator(mode="after")
    def _one_or_several_teachers(self) -> GridBlock:
        if self.teacher and self.teachers:
            raise ValueError("with teacher or with teachers, not both")
        if self.teachers and abs(math.fsum(self.teachers.values()) - 1.0) > 1e-6:
            raise ValueError(f"with teachers whose weights sum to 1 (got {self.teachers})")
        if bool(self.routes) == bool(self.datasets):
            raise ValueError("with datasets, or with routes from datasets to teachers")
        if self.routes and (self.teacher or self.teachers or len(self.routes) == 1):
            raise ValueError("with routes from several datasets, and no teacher or teachers beside")
        return self


def block_of(assistant: AssistantTeacher) -> GridBlock:
    """The grid block whose only run is this assistant."""
    varied: dict[str, Any] = {
        name: [] if (value := getattr(assistant, name)) is None else [value]
        for name in ("temperature", "alpha", "labelled", "max_new_tokens")
    }
    same = ("pipeline", "teacher", "generation", "answers", "training")
    return GridBlock(
        students=[assistant.student],
        datasets=[assistant.dataset],
        seeds=[assistant.seed],
        **varied,
        **{name: getattr(assistant, name) for name in same},
    )


class Config(Settings):
    """The whole configuration."""

    store: StoreSettings = StoreSettings()
    """The shared artifact store."""
    results: str = "results"
    """Folder of this team's students, scores, tables and report."""
    hardware: HardwareSettings = HardwareSettings()
    """What jobs ask for."""
    datasets: dict[str, DataSource]
    """The data sets by name."""
    revisions: dict[str, str] = {}
    """The commit of every hub name that states none itself. A branch or tag is good enough to plan
    with; before anything runs, ``angelshare resolve`` writes the commit in its place."""
    files: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None] = {}
    """The sha256 of every file that is named by its repository (``hub:owner/dataset/path``,
    ``github:owner/repository/path``; the latter's commit is ``github:owner/repository`` under
    ``revisions``). Null until ``angelshare resolve`` has fetched the file and writes it here."""
    benchmarks: dict[str, BenchmarkSource] = {}
    """Evaluation sets that the training data are searched for, by name. The report of each dataset
    lies in ``<results>/overlap/``; it changes no artifact."""
    overlap: OverlapSettings = OverlapSettings()
    """What counts as overlap."""
    tokenizers: dict[str, TrainedTokenizer] = {}
    """Tokenizers that the workflow trains, by name (pretrained models bring their own)."""
    teachers: dict[str, Teacher]
    """The teachers by name."""
    students: dict[str, Student]
    """The students by name: where their weights come from."""
    pipelines: dict[str, PipelineSettings]
    """The pipelines by name."""
    capture: CaptureSettings = CaptureSettings()
    """How the teacher's distribution is cached."""
    states: dict[str, StatesSettings] = {}
    """Which of the teacher's hidden states are cached, by a name that pipelines use."""
    generation: DecodingSettings = DecodingSettings()
    """How the teacher answers prompts."""
    answers: AnswerFilter = AnswerFilter()
    """Which of its answers students learn from."""
    loss: LossSettings = LossSettings()
    """The distillation loss, where a grid block does not say otherwise."""
    training: TrainingSettings = TrainingSettings()
    """How every student is trained."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """How teacher and students are scored."""
    judges: dict[str, JudgeSettings] = {}
    """The judges by name."""
    grid: list[GridBlock] = Field(min_length=1)
    """The student runs."""
    energy: EnergySettings = EnergySettings()
    """How energy is measured."""
    carbon: CarbonSettings = CarbonSettings()
    """How energy becomes CO2e."""
    accounting: AccountingSettings = AccountingSettings()
    """How teacher energy is shared out and results are compared."""
    budget: BudgetSettings = BudgetSettings()
    """What the study may spend."""

    def runs_model(self, rule: RuleName) -> bool:
        """Whether the jobs of this rule run a model here."""
        judged_here = any(judge.endpoint is None for judge in self.judges.values())
        return rule in MODEL_RULES and (judged_here or rule not in JUDGE_RULES)

    def resources_of(self, rule: RuleName) -> JobResources:
        """What the first attempt of a job of this rule asks for, nothing left open."""
        return self.hardware.of(rule, self.runs_model(rule))

    def cited_scores(self, teacher: str | None) -> dict[str, CitedScore]:
        """The published scores of a teacher, by task."""
        found = self.teachers.get(teacher or "")
        return found.scores if isinstance(found, PretrainedTeacher) else {}

    def blocks(self) -> Iterator[tuple[str, GridBlock]]:
        """Every block of runs, with where it stands: the grid's, and each assistant as one of its
        own."""
        for number, block in enumerate(self.grid):
            yield f"grid[{number}]", block
        for name, teacher in self.teachers.items():
            if isinstance(teacher, AssistantTeacher):
                yield f"teachers.{name}", block_of(teacher)

    def training_gpus(self, student: str) -> int:
        """GPUs, on each of its nodes, that train a student."""
        own = self.students[student].gpus
        return (self.resources_of("train_student").gpus or 0) if own is None else own

    def training_processes(self, student: str) -> int:
        """Processes, on each of its nodes, that train a student."""
        return max(1, self.training_gpus(student))

    def training_of(self, block: GridBlock) -> TrainingSettings:
        """The training settings of a grid block: the common ones with the block's changes."""
        return TrainingSettings.model_validate({**self.training.model_dump(), **block.training})

    def loss_of(self, pipeline: str) -> LossSettings:
        """The loss of a pipeline: the common one with its changes."""
        changes = self.pipelines[pipeline].loss
        return LossSettings.model_validate({**self.loss.model_dump(), **changes})

    def generation_of(
        self, block: GridBlock, max_new_tokens: int | None = None
    ) -> DecodingSettings:
        """How the teacher answers for a grid block: the common settings with its changes."""
        changes = dict(block.generation)
        if max_new_tokens is not None:
            changes["max_new_tokens"] = max_new_tokens
        return DecodingSettings.model_validate({**self.generation.model_dump(), **changes})

    def answers_of(self, block: GridBlock) -> AnswerFilter:
        """Which answers the students of a grid block learn from."""
        return AnswerFilter.model_validate({**self.answers.model_dump(), **block.answers})


def load_config(values: Mapping[str, Any], where: str = "the configuration") -> Config:
    """Check ``values`` and return the typed configuration.

    Raises:
        AngelshareError: one line per problem: which key, what it must be, what it is.
    """
    try:
        config = Config.model_validate(dict(values))
    except ValidationError as error:
        lines = dict.fromkeys(explain(problem, Config, values) for problem in error.errors())
        raise AngelshareError(_join(where, lines)) from None
    config = filled(config)
    problems = [
        *dangling_names(config),
        *unusable_judges(config),
        *missing(config),
        *cache_problems(config),
        *too_few_gpus(config),
        *unquantised_engines(config),
        *unusable_paths(config),
    ]
    if problems:
        raise AngelshareError(_join(where, dict.fromkeys(problems)))
    return config


def _join(where: str, lines: Mapping[str, None]) -> str:
    return "\n".join([f"{where} is not valid:", *(f"  {line}" for line in lines)])


def json_schema() -> dict[str, Any]:
    """The JSON schema of the configuration, for editors: `config/schemas/config.schema.json`."""
    from angelshare.described import described_schema

    return described_schema(Config)
