"""What a job made its part with, gathered as it works: see `angelshare.store.provenance`.

Licences are what the configuration states of its datasets and teachers. They enter no recipe: a
corrected licence must not cost a teacher's night. What was stated when a part was made stays on its
receipt; what the configuration says now is what a job and the report warn of.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import angelshare
from angelshare.config import Config
from angelshare.errors import AngelshareError
from angelshare.fingerprints import Fingerprints
from angelshare.plans import ArtifactPlan, RunPlan, Study
from angelshare.store.artifacts import ArtifactStore
from angelshare.store.provenance import Provenance, restriction
from angelshare.teacher.settings import PretrainedTeacher

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SOFTWARE = ("datasets", "flash_attn", "lm_eval", "pyarrow", "tokenizers", "torch", "transformers")
SOFTWARE_AND_BACKENDS = (*SOFTWARE, "vllm")
OUTPUTS = ("corpus", "logits", "states")
"""The kinds of artifact that are a model's outputs, for a student to be trained on."""


class Making:
    """What one job has used so far to make its part."""

    def __init__(self) -> None:
        self._model_files: dict[str, str] = {}
        self._tokenizer_sha256: str | None = None
        self._chat_template_sha256: str | None = None
        self._device: str | None = None
        self._licences: dict[str, str | None] = {}

    def tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Note the tokenizer that was made or read with."""
        from angelshare.data.tokenizer import chat_template_digest, tokenizer_digest

        self._tokenizer_sha256 = tokenizer_digest(tokenizer)
        self._chat_template_sha256 = chat_template_digest(tokenizer)

    def model(self, teacher: PretrainedTeacher, results: str) -> None:
        """Note the files of a pretrained model, after it was read."""
        folder = Path(teacher.model).expanduser()
        if not folder.is_dir():
            folder = _snapshot(teacher.model, teacher.revision)
        self._model_files = Fingerprints(results).files(folder)

    def device(self) -> None:
        """Note what kind of processor models run on in this process."""
        from angelshare.teacher.models import default_device

        self._device = default_device()

    def licence(self, plan: ArtifactPlan, text: str | None) -> None:
        """Note what a source says of its own licence."""
        self._licences[name_of(plan)] = text

    def record(self, config: Config, store: ArtifactStore, plan: ArtifactPlan) -> Provenance:
        """The record for the receipt of a part of ``plan``."""
        stated = licences(config, store, plan)
        own = {name: text for name, text in self._licences.items() if stated.get(name) is None}
        return Provenance(
            software=software(),
            device=self._device,
            model_files=self._model_files,
            tokenizer_sha256=self._tokenizer_sha256,
            chat_template_sha256=self._chat_template_sha256,
            licences={**stated, **own},
            restricted=restricted(config, plan),
        )


def software() -> dict[str, str]:
    """Versions of what is loaded in this process and decides content, Python's minor included."""
    found = {
        "angelshare": angelshare.__version__,
        "python": ".".join(platform.python_version_tuple()[:2]),
    }
    for name in SOFTWARE_AND_BACKENDS:
        module = sys.modules.get(name)
        if module is not None:
            found[name] = getattr(module, "__version__", None) or importlib.metadata.version(name)
    return found


def name_of(plan: ArtifactPlan) -> str:
    """What an artifact is called among licences: the same for every team."""
    return f"{plan.kind}/{plan.key[:12]}"


def licences(config: Config, store: ArtifactStore, plan: ArtifactPlan) -> dict[str, str | None]:
    """The licence of each dataset and model that an artifact stands on, its own included."""
    found: dict[str, str | None] = {}
    for one in plan.closure():
        if one.kind == "dataset":
            text = config.datasets[one.name].license
            found[name_of(one)] = text or _recorded(store, one)
        elif one.kind == "tokenizer":
            found[name_of(one)] = config.datasets[config.tokenizers[one.name].dataset].license
        elif one.kind == "model":
            found[name_of(one)] = config.teachers[one.name].license
        else:
            found.setdefault(_teacher_name(one), config.teachers[one.name].license)
    return dict(sorted(found.items()))


def restricted(config: Config, plan: ArtifactPlan) -> list[str]:
    """The models that made an artifact or what it is made of, and whose licence restricts that."""
    return sorted(
        {_teacher_name(one) for one in plan.closure() if _restricted(config, _speaker(config, one))}
    )


def restricted_of(config: Config, run: RunPlan) -> list[str]:
    """The models of whose outputs a run learns, and whose licence restricts that."""
    found = {name for plan in run.upstream() for name in restricted(config, plan)}
    if run.on_policy and _restricted(config, next(iter(run.teachers))):
        found.add(_teacher_name(run))
    return sorted(found)


def _speaker(config: Config, plan: ArtifactPlan) -> str | None:
    """The teacher whose outputs an artifact holds, or was trained on without their being kept."""
    if plan.assistant and "on_policy" in plan.recipe["student"]:
        return getattr(config.teachers[plan.name], "teacher", None)
    return plan.name if plan.kind in OUTPUTS else None


def _restricted(config: Config, teacher: str | None) -> bool:
    return teacher is not None and config.teachers[teacher].outputs_restricted


def licence_warnings(config: Config, study: Study) -> list[str]:
    """One line for each artifact of the study that a restricted model makes, and for each run that
    learns from one in memory."""
    artifacts = [
        f"{plan.kind} {plan.label}: {restriction(models)}"
        for plan in study.artifacts.values()
        if plan.kind in OUTPUTS and (models := restricted(config, plan))
    ]
    runs = [
        f"run {run.name}: {restriction(models)}"
        for run in study.trainings.values()
        if run.on_policy and (models := restricted_of(config, run))
    ]
    return artifacts + runs


def _teacher_name(plan: ArtifactPlan | RunPlan) -> str:
    """The teacher of an artifact or run by what it is, not by what a configuration calls it."""
    if "teacher" in plan.inputs:
        return name_of(plan.inputs["teacher"])
    if "answers" in plan.inputs:
        return _teacher_name(plan.inputs["answers"])
    named: dict[str, Any] = plan.recipe.get("student", plan.recipe)["teacher"]
    if "hub" in named:
        return f"{named['hub']}@{named['revision']}"
    return f"model sha256:{named['sha256'][:12]}"


def _recorded(store: ArtifactStore, plan: ArtifactPlan) -> str | None:
    """What was known of a dataset's licence when it was prepared."""
    try:
        parts = store.artifact(plan.kind, plan.key).manifest().parts
    except AngelshareError:
        return None
    return next((part.provenance.licences.get(name_of(plan)) for part in parts), None)


def _snapshot(model: str, revision: str | None) -> Path:
    """The folder of the hub's cache that a model was read from."""
    from transformers.utils.hub import cached_file

    path = cached_file(model, "config.json", revision=revision, local_files_only=True)
    if path is None:
        raise AngelshareError(f"{model} at {revision} is in no cache of this machine.")
    return Path(path).parent
