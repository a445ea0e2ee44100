"""Settings of judged benchmarks and of the judges."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from angelshare.settings import Settings


class JudgeSettings(Settings):
    """A judge: a model behind an OpenAI-compatible endpoint, or one that runs here."""

    execution = frozenset(
        {"api_key_env", "concurrency", "timeout_s", "retries", "max_missing", "batch_size"}
    )

    model: str = Field(min_length=1)
    """What the endpoint calls the model; without an endpoint, a hub name or a local folder."""
    endpoint: str | None = Field(default=None, pattern=r"^https?://[^@\s]+$")
    """The address before ``/chat/completions`` (``https://api.openai.com/v1``). Null: the model
    runs here, and its energy is metered. What a remote judge draws is not known to anyone here."""
    version: str | None = None
    """Whatever else says which judge it is: a date, a quantisation. Stands in every score."""
    revision: str | None = None
    """The hub commit of a local judge."""
    backend: Literal["transformers", "vllm"] = "transformers"
    """The program that runs a local judge."""
    max_tokens: int = Field(default=1024, gt=0)
    """Tokens a verdict may have."""
    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature."""
    api_key_env: str | None = None
    """The environment variable with the endpoint's key. The key itself is written nowhere."""
    concurrency: int = Field(default=4, gt=0)
    """Requests to the endpoint at once."""
    timeout_s: float = Field(default=120.0, gt=0)
    """How long one request may take."""
    retries: int = Field(default=6, ge=0)
    """How often a request is repeated after a timeout, a lost connection, a rate limit or an error
    of the server: after what ``Retry-After`` says, otherwise after 0.5 s, doubled up to 8 s."""
    max_missing: float = Field(default=0.05, ge=0, le=1)
    """The largest share of verdicts that may be missing; with more, there is no score."""
    batch_size: int = Field(default=8, gt=0)
    """Questions a local judge reads at once."""

    @model_validator(mode="after")
    def _remote_or_local(self) -> JudgeSettings:
        if self.endpoint and self.revision:
            raise ValueError("an endpoint serves what it serves: say version instead of revision")
        if not self.endpoint and self.api_key_env:
            raise ValueError("api_key_env is of no use without an endpoint")
        return self


class JudgedSettings(Settings):
    """What every benchmark whose answers a model judges has in common."""

    execution = frozenset({"judge", "batch_size"})

    files: ClassVar[tuple[str, ...]]
    """The fields that name files, by path or by the repository that publishes them
    (`angelshare.published`); recipes know these by their content."""
    asked_from: ClassVar[tuple[str, ...]]
    """Those of them that decide what a model is asked; the others only decide the verdicts."""

    needs: ClassVar[str | None] = None
    """The package that makes the benchmark, with its release, as pip names it."""
    reads_logprobs: ClassVar[bool] = False
    """Whether a verdict is in the log-probabilities of the judge's first token."""

    benchmark: str
    """Which one."""
    judge: str
    """A name from ``judges``."""
    limit: int | None = Field(default=None, gt=0)
    """Only the first problems, of each ability where there are several: for trying things out, not
    for scores."""
    backend: Literal["transformers", "vllm"] = "transformers"
    """The program that answers."""
    max_new_tokens: int = Field(default=1024, gt=0)
    """Tokens an answer may have."""
    batch_size: int = Field(default=16, gt=0)
    """Answers written at once."""

    def identity(self) -> dict[str, Any]:
        """What decides the answers besides the files and the model."""
        return self.model_dump(exclude={*self.execution, *self.files})

    @property
    def has_package(self) -> bool:
        """Whether what it ``needs`` is installed here, in that very release."""
        name, _, release = (self.needs or "").partition("==")
        try:
            return not name or version(name) == release
        except PackageNotFoundError:
            return False


class MtBench101Settings(JudgedSettings):
    """MT-Bench-101: dialogues of several turns, each turn rated from 1 to 10."""

    files = ("data", "prompts")
    asked_from = files

    benchmark: Literal["mt_bench_101"]
    """Which one."""
    data: str = Field(min_length=1)
    """The benchmark's own file: ``mtbench101.jsonl``."""
    prompts: str = Field(min_length=1)
    """The benchmark's published prompts and rubric: OpenCompass' ``mtbench101.py``."""


class AlpacaEvalSettings(JudgedSettings):
    """AlpacaEval 2: answers to single instructions, each beside the baseline's."""

    files = ("data", "gamed")
    asked_from = ("data",)
    needs: ClassVar[str] = "alpaca_eval==0.6.6"
    reads_logprobs = True

    benchmark: Literal["alpaca_eval_2"]
    """Which one."""
    data: str = Field(min_length=1)
    """The instructions with the baseline's answers: ``alpaca_eval_gpt4_baseline.json``."""
    gamed: str = Field(min_length=1)
    """What steadies the length-controlled win rate: ``df_gamed.csv``, from where the data are."""


AnyJudgedSettings = Annotated[
    MtBench101Settings | AlpacaEvalSettings, Field(discriminator="benchmark")
]
"""The judged benchmarks there are."""
