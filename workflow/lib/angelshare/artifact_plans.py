"""Which artifacts a study needs of data and teachers: each with its recipe and key.

Equal recipes become one plan. A study has few artifacts and many runs: what runs have in common,
its recipe and the look at a model's folder, is worked out once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from angelshare.config import Config, GridBlock, block_of
from angelshare.data.settings import AnswerFilter, DataSource
from angelshare.fingerprints import Fingerprints
from angelshare.plans import ArtifactPlan, RunPlan
from angelshare.recipes import make_recipe, recipe_key
from angelshare.settings import Settings
from angelshare.teacher.settings import (
    AssistantTeacher,
    DecodingSettings,
    EmbeddedTeacher,
    StatesCapture,
)

Method = TypeVar("Method", bound=Callable[..., Any])


def once(method: Method) -> Method:
    """Compute a method once for each of its arguments, which are values.

    Its object keeps what it found in ``known``.
    """

    @functools.wraps(method)
    def remembering(self: Any, *arguments: Any) -> Any:
        key = (method.__name__, *arguments)
        if key not in self.known:
            self.known[key] = method(self, *arguments)
        return self.known[key]

    return cast(Method, remembering)


@dataclass(frozen=True, slots=True)
class RowsAndAnswers:
    """What a run learns from, before the teacher has worked on it."""

    name: str
    labelled: int | None
    decoding: DecodingSettings
    answers: AnswerFilter

    def filtered(self) -> dict[str, Any]:
        """What a recipe says of the answers that are read; nothing where all of them are."""
        every = self.answers == AnswerFilter()
        return {} if every else {"answers": self.answers.identity()}


def splits_of(data: str) -> list[str]:
    """The rows a pipeline trains on: the labelled ones, or every prompt the teacher answers."""
    return ["train", "unlabelled"] if data == "corpus" else ["train"]


class ArtifactPlanner:
    """Plans artifacts of a configuration.

    ``run_of`` plans the run of an assistant, a student that teaches others: its model is an
    artifact made from what that run reads.
    """

    def __init__(self, config: Config, run_of: Callable[[GridBlock], RunPlan]) -> None:
        self.config, self.run_of = config, run_of
        self.fingerprints = Fingerprints(config.results)
        self.known: dict[tuple[Any, ...], Any] = {}
        self.assistants: dict[str, RunPlan] = {}
        """The run behind each assistant's model, by that artifact's key."""

    def artifact(
        self,
        kind: str,
        name: str,
        inputs: dict[str, ArtifactPlan],
        settings: Settings,
        /,
        *,
        parts: int = 1,
        label: str | None = None,
        **recipe: Any,
    ) -> ArtifactPlan:
        made_from = {role: {"kind": plan.kind, "key": plan.key} for role, plan in inputs.items()}
        full = make_recipe(kind, inputs=made_from, parts=parts, **recipe)
        return ArtifactPlan(
            kind=kind,
            key=recipe_key(kind, full),
            recipe=full,
            parts=parts,
            inputs=inputs,
            name=name,
            label=label or name,
            settings=settings,
        )

    def source(self, name: str, labelled: int | None) -> DataSource:
        """A dataset of the configuration, or its variant with another number of rows."""
        source = self.config.datasets[name]
        return source.model_copy(update={"labelled": labelled}) if labelled else source

    @once
    def dataset(self, name: str, labelled: int | None = None) -> ArtifactPlan:
        source = self.source(name, labelled)
        settings = source.identity()
        if source.source == "file":
            settings["path"] = {"sha256": self.fingerprints.file(source.path)}
        label = f"{name}, {labelled} rows" if labelled else name
        return self.artifact("dataset", name, {}, source, label=label, source=settings)

    @once
    def tokenizer(self, name: str) -> ArtifactPlan:
        trained = self.config.tokenizers[name]
        return self.artifact(
            "tokenizer",
            name,
            {},
            trained,
            settings=trained.identity(),
            problems=self.config.datasets[trained.dataset].identity(),
        )

    @once
    def teacher(self, name: str) -> tuple[dict[str, ArtifactPlan], dict[str, Any]]:
        """The teacher as an input artifact, or as plain recipe values when it is pretrained."""
        teacher = self.config.teachers[name]
        if isinstance(teacher, EmbeddedTeacher):
            inputs = {"tokenizer": self.tokenizer(teacher.tokenizer)}
            model = self.artifact(
                "model",
                name,
                inputs,
                teacher,
                settings=teacher.demo.identity(),
                problems=self.config.datasets[teacher.dataset].identity(),
            )
            return {"teacher": model}, {}
        if isinstance(teacher, AssistantTeacher):
            run = self.run_of(block_of(teacher))
            model = self.artifact("model", name, run.inputs, teacher, student=run.recipe)
            self.assistants[model.key] = run
            return {"teacher": model}, {}
        named = self.fingerprints.model(teacher.model, teacher.revision)
        if teacher.trust_remote_code:
            named["trust_remote_code"] = True
        return {}, {"teacher": named}

    @once
    def read_with(self, name: str) -> ArtifactPlan | None:
        """The tokenizer of a teacher; None where it came with a pretrained model."""
        teacher = self.config.teachers[name]
        if isinstance(teacher, EmbeddedTeacher):
            return self.tokenizer(teacher.tokenizer)
        if isinstance(teacher, AssistantTeacher):
            return self.run_of(block_of(teacher)).inputs.get("tokenizer")
        return None

    def first_of_chain(self, teacher: str) -> str:
        """The teacher that an assistant's chain begins with: all quality is relative to it."""
        entry = self.config.teachers[teacher]
        if isinstance(entry, AssistantTeacher) and entry.teacher:
            return self.first_of_chain(entry.teacher)
        return teacher

    def parts(self, source: DataSource, splits: list[str]) -> int:
        """How many jobs share these splits; one where the recipe promises no number of rows."""
        sizes = {"train": source.labelled, "unlabelled": source.unlabelled}
        rows = [sizes[split] for split in splits]
        known = [count for count in rows if count is not None]
        if len(known) < len(rows):
            return 1
        return max(1, math.ceil(sum(known) / self.config.hardware.part_rows))

    @once
    def corpus(self, data: RowsAndAnswers, teacher: str) -> ArtifactPlan:
        splits = ["train", "unlabelled"]
        inputs, named = self.teacher(teacher)
        sequences = self.dataset(data.name, data.labelled)
        usual = data.decoding == self.config.generation
        return self.artifact(
            "corpus",
            teacher,
            {**inputs, "sequences": sequences},
            data.decoding,
            parts=self.parts(self.source(data.name, data.labelled), splits),
            label=f"{teacher} answers {sequences.label}"
            + ("" if usual else f", up to {data.decoding.max_new_tokens} tokens"),
            splits=splits,
            part_rows=self.config.hardware.part_rows,
            decoding=data.decoding.identity(),
            **named,
        )

    @once
    def logits(self, data: RowsAndAnswers, teacher: str, read: str, answering: str) -> ArtifactPlan:
        capture = self.config.capture
        label = str(capture.codec)
        return self.captured(
            "logits", data, teacher, read, answering, capture, label, capture=capture
        )

    @once
    def states(self, data: RowsAndAnswers, teacher: str, read: str, name: str) -> ArtifactPlan:
        states = StatesCapture.of(self.config.states[name], self.config.capture)
        label = str(states)
        return self.captured("states", data, teacher, read, teacher, states, label, states=states)

    def captured(
        self,
        kind: str,
        data: RowsAndAnswers,
        teacher: str,
        read: str,
        answering: str,
        settings: Settings,
        label: str,
        **recipe: Settings,
    ) -> ArtifactPlan:
        """What a teacher's forward pass leaves, in parts, over a dataset or over the corpus that
        the teacher ``answering`` made of it."""
        inputs, named = self.teacher(teacher)
        splits = splits_of(read)
        if read == "corpus":
            named |= data.filtered()
        sequences = (
            self.corpus(data, answering)
            if read == "corpus"
            else self.dataset(data.name, data.labelled)
        )
        return self.artifact(
            kind,
            teacher,
            {**inputs, "sequences": sequences},
            settings,
            parts=self.parts(self.source(data.name, data.labelled), splits),
            label=f"{teacher} on {sequences.label}, {label}",
            splits=splits,
            part_rows=self.config.hardware.part_rows,
            **{name: one.identity() for name, one in recipe.items()},
            **named,
        )

    @once
    def init(self, student: str) -> dict[str, Any]:
        """What a recipe says of a student's initial weights."""
        return self.fingerprints.student(self.config.students[student].init)
