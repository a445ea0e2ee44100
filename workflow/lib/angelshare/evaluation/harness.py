"""Scores of a model, through lm-evaluation-harness: its tasks, its metrics, its standard errors.

A score is exact match, accuracy or whatever the task defines, a mean over problems with the
harness's standard error. What passes through the model is counted in tokens: ``prompt`` and
``generated`` for answers, and ``evaluated`` for everything a score needed (both of these, and the
tokens scored by likelihood). Padding is not counted.
"""

from __future__ import annotations

import importlib.metadata
import io
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import (
    AbstractContextManager,
    ExitStack,
    contextmanager,
    nullcontext,
    redirect_stderr,
)
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from torch import Tensor

from angelshare.errors import AngelshareError
from angelshare.evaluation.settings import OWN_TASKS, TASKS_FOLDER, EvaluationSettings

Progress = Callable[[int, int, str], None]
"""Takes the requests answered, the requests known of and a remark."""
Count = Callable[..., None]
"""Takes work done as keyword arguments: prompt, generated, evaluated (tokens), samples."""
Phase = Callable[[str], AbstractContextManager[None]]
"""Marks a stretch of work by name: ``prefill`` (prompts, and the first token of each answer) and
``decode`` (the other tokens)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One metric of one task."""

    task: str
    """The harness's name of the task or group."""
    metric: str
    """The harness's name, with the answer filter where there are several: ``exact_match``."""
    filter: str
    """How the answer was read off the text; ``none`` where nothing was."""
    value: float
    """Mean over problems."""
    stderr: float | None
    """The harness's standard error of ``value``; None where it has none."""
    higher_is_better: bool
    samples: int
    """Problems."""
    task_version: str
    """The harness's version of the task."""
    few_shot: int
    """Examples before each question."""
    harness: str
    """Name and version of the program that scored."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class CountingLM(HFLM):
    """The harness's transformers back end; counts the tokens that pass through the model."""

    def __init__(
        self,
        *args: Any,
        progress: Progress,
        count: Count,
        phase: Phase = lambda _name: nullcontext(),
        **kwargs: Any,
    ) -> None:
        """``count`` takes what each call processed, ``progress`` how many requests are done,
        ``phase`` marks what is prefill and what is decoding."""
        super().__init__(*args, **kwargs)
        self.progress, self.count, self.phase = progress, count, phase
        self.done = self.requests = 0

    def _note(self, requests: int, **tokens: int) -> None:
        self.count(samples=requests, **tokens)
        self.done += requests
        self.progress(self.done, self.requests, "requests")

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Answer ``requests``; ``AngelshareError`` where a prompt would have to be cut."""
        self.requests += len(requests)
        for request in requests:
            prompt, options = request.args
            tokens = len(self.tok_encode(prompt))
            room = self.max_length - options.get("max_gen_toks", self.max_gen_toks)
            if tokens > room:
                raise AngelshareError(
                    f"{request.task_name}: a prompt has {tokens} tokens, and a model of "
                    f"{self.max_length} has room for {room} before the answer: lower "
                    "evaluation.max_gen_toks or few_shot, or train with a larger max_length"
                )
        answers: list[str] = super().generate_until(requests, disable_tqdm)
        return answers

    def _model_generate(
        self, context: Tensor, max_length: int, stop: list[str], **kwargs: Any
    ) -> Tensor:
        """Count prompt tokens, and answer tokens up to the first end of sequence."""
        with self._phases():
            tokens: Tensor = super()._model_generate(context, max_length, stop, **kwargs)
        ends = (tokens[:, context.shape[1] :] == self.eot_token_id).int()
        generated = int(((ends.cumsum(1) - ends) == 0).sum())
        prompt = int(kwargs["attention_mask"].sum())
        evaluated = prompt + generated
        self._note(len(context), prompt=prompt, generated=generated, evaluated=evaluated)
        return tokens

    @contextmanager
    def _phases(self) -> Iterator[None]:
        """Mark the first forward pass within as prefill, and what follows as decoding."""
        with ExitStack() as now:
            now.enter_context(self.phase("prefill"))

            def answered(*_: Any) -> None:
                first.remove()
                now.close()
                now.enter_context(self.phase("decode"))

            first = self.model.register_forward_hook(answered)
            try:
                yield
            finally:
                first.remove()

    def _loglikelihood_tokens(self, requests: list[Any], *args: Any, **kwargs: Any) -> Any:
        """Count the tokens of contexts and continuations."""
        tokens = sum(len(context) + len(continuation) for _, context, continuation in requests)
        self.requests += len(requests)
        self._note(len(requests), evaluated=tokens)
        return super()._loglikelihood_tokens(requests, *args, **kwargs)


def evaluate_model(
    model: Path | str,
    settings: EvaluationSettings,
    dataset: pa.Table | None,
    progress: Progress,
    count: Count,
    revision: str | None = None,
    trust_remote_code: bool = False,
    phase: Phase = lambda _name: nullcontext(),
) -> list[Score]:
    """Score a model folder (or hub model) on the tasks of ``settings``, in their order.

    ``dataset`` is the sequence table of the problems that this project's own tasks ask. Raises
    ``AngelshareError`` for an unknown task, a missing dataset, or a prompt that leaves no room for
    the answer.
    """
    own = [name for name in settings.tasks if name in OWN_TASKS]
    if own and (dataset is None or dataset.num_rows == 0):
        raise AngelshareError(f"task {own[0]} asks a dataset's test split: there are no rows in it")
    with tempfile.TemporaryDirectory() as scratch, _quiet_harness():
        metadata = {}
        if own:
            metadata["data_file"] = str(Path(scratch) / "test.parquet")
            pq.write_table(dataset, metadata["data_file"])
        folders = [TASKS_FOLDER, *([Path(settings.task_folder)] if settings.task_folder else [])]
        local = {path.stem for folder in folders for path in folder.glob("*.yaml")}
        manager = TaskManager(
            include_path=[str(folder.absolute()) for folder in folders],
            include_defaults=not local.issuperset(settings.tasks),
            metadata=metadata,
        )
        for name in settings.tasks:
            if name not in manager.all_tasks:
                raise AngelshareError(f"lm-evaluation-harness {_version()} has no task {name!r}")
        results = simple_evaluate(
            model=CountingLM(
                pretrained=str(Path(model).absolute() if Path(model).is_dir() else model),
                revision=revision or "main",
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                batch_size=settings.batch_size,
                device="cuda" if torch.cuda.is_available() else "cpu",
                progress=progress,
                count=count,
                phase=phase,
            ),
            tasks=list(settings.tasks),
            num_fewshot=settings.few_shot,
            limit=settings.limit,
            apply_chat_template=settings.chat_template,
            gen_kwargs={"max_gen_toks": settings.max_gen_toks} if settings.max_gen_toks else None,
            task_manager=manager,
            log_samples=False,
        )
    return [score for name in settings.tasks for score in _scores(name, results)]


def _scores(task: str, results: dict[str, Any]) -> Iterator[Score]:
    values = results["results"][task]
    for key, value in values.items():
        metric, _, answer_filter = key.partition(",")
        if not answer_filter or metric.endswith("_stderr"):
            continue
        stderr = values.get(f"{metric}_stderr,{answer_filter}")
        yield Score(
            task=task,
            metric=metric,
            filter=answer_filter,
            value=float(value),
            stderr=float(stderr) if isinstance(stderr, (int, float)) else None,
            higher_is_better=bool(results["higher_is_better"][task][metric]),
            samples=_samples(task, results),
            task_version=str(results["versions"].get(task, "")),
            few_shot=int(results["n-shot"].get(task, 0)),
            harness=f"lm-evaluation-harness {_version()}",
        )


def _samples(task: str, results: dict[str, Any]) -> int:
    names = results.get("group_subtasks", {}).get(task) or [task]
    return sum(int(results["n-samples"][name]["effective"]) for name in names)


def _version() -> str:
    return importlib.metadata.version("lm-eval")


@contextmanager
def _quiet_harness() -> Iterator[None]:
    """Drop the harness's notices and its progress bars, which nothing else can switch off."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
