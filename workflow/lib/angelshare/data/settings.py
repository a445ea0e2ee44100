"""Settings of the data stage: where problems come from and how they are split."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from angelshare.settings import PROJECT_LICENCE, Settings


class WordProblems(Settings):
    """Generated arithmetic word problems with worked answers; needs no download."""

    execution = frozenset({"license"})

    source: Literal["word_problems"] = "word_problems"
    """Which kind of source this is."""
    seed: int = Field(default=0, ge=0)
    """Decides every problem; the same seed gives the same table."""
    labelled: int = Field(default=500, gt=0)
    """Problems with a worked answer (split ``train``)."""
    unlabelled: int = Field(default=4000, ge=0)
    """Problems without an answer, for the teacher to answer (split ``unlabelled``)."""
    validation: int = Field(default=200, gt=0)
    """Held-out problems that decide when to stop training."""
    test: int = Field(default=400, gt=0)
    """Held-out problems that decide the score."""
    license: str | None = PROJECT_LICENCE
    """What the problems may be used for; the project's own licence, since it makes them."""


class FileOrigin(Settings):
    """A local JSONL or Parquet file with the rows that a hub dataset would have."""

    source: Literal["file"]
    """Which kind of source this is."""
    path: str = Field(min_length=1)
    """The ``.jsonl`` or ``.parquet`` file."""


class HubOrigin(Settings):
    """A dataset of the Hugging Face hub, at a pinned revision."""

    source: Literal["hub"]
    """Which kind of source this is."""
    name: str = Field(min_length=1)
    """The dataset's name, such as ``allenai/tulu-3-sft-mixture``."""
    subset: str | None = None
    """The dataset's configuration, where it has several."""
    revision: str | None = Field(default=None, min_length=1)
    """The commit to read; null takes the one that ``revisions`` names."""
    hub_split: str = "train"
    """The hub's split to sample from."""


class Conversations(Settings):
    """How rows of chat messages, or of questions and answers, become a seeded, split sample."""

    execution = frozenset({"license"})

    messages_field: str = "messages"
    """The column that holds a list of ``{role, content}``."""
    prompt_field: str | None = None
    """The column with the question, in data that has no messages (GSM8K's ``question``)."""
    answer_field: str | None = None
    """The column with its answer; given together with ``prompt_field``."""
    id_field: str | None = None
    """A column with unique ids; without one, rows are named by their number."""
    count_field: str | None = None
    """A column whose values are counted in the sample (the mixture's ``source``)."""
    seed: int = Field(default=0, ge=0)
    """Decides which rows go to which split."""
    labelled: int | None = Field(default=None, gt=0)
    """Rows of split ``train``; null takes all that the other splits leave. A smaller number of the
    same seed is a subset of a larger one."""
    unlabelled: int = Field(default=0, ge=0)
    """Rows of split ``unlabelled``, whose last answer is left out."""
    validation: int = Field(default=200, gt=0)
    """Rows of split ``validation``."""
    test: int = Field(default=0, ge=0)
    """Rows of split ``test``."""
    license: str | None = None
    """The data's licence, an SPDX identifier where there is one (``ODC-By-1.0``). Recorded with all
    that is made from it, and part of no key. Null: what the hub says of it."""

    @model_validator(mode="after")
    def _both_fields(self) -> Conversations:
        if (self.prompt_field is None) != (self.answer_field is None):
            raise ValueError("given with prompt_field and answer_field, or with neither")
        return self


class FileSource(Conversations, FileOrigin):
    """A local JSONL or Parquet file in one of the hubs' formats."""


class HubSource(Conversations, HubOrigin):
    """A dataset of the Hugging Face hub, at a pinned revision."""


DataSource = Annotated[WordProblems | FileSource | HubSource, Field(discriminator="source")]


class _Texts(Settings):
    text_fields: list[str] = Field(min_length=1)
    """The columns whose text, joined, is one item of the benchmark."""


class BenchmarkFile(_Texts, FileOrigin):
    """An evaluation set in a local JSONL or Parquet file."""


class BenchmarkHub(_Texts, HubOrigin):
    """An evaluation set of the Hugging Face hub."""


BenchmarkSource = Annotated[BenchmarkFile | BenchmarkHub, Field(discriminator="source")]


class OverlapSettings(Settings):
    """When a benchmark's item counts as contained in the training data, and two prompts as one."""

    ngram: int = Field(default=8, gt=0)
    """Words that must agree in a row, as in Tülu 3 (arXiv:2411.15124, section 3.2)."""
    share: float = Field(default=0.5, gt=0, lt=1)
    """An item is contained when more than this share of its words lies in n-grams that one and the
    same training row has too."""
    jaccard: float = Field(default=0.8, gt=0, le=1)
    """Two prompts are near duplicates when their sets of five-word sequences agree this much."""


class AnswerFilter(Settings):
    """Which of the teacher's answers a student learns from. The corpus itself keeps all of them."""

    drop_cut: bool = False
    """Whether to leave out answers that ``max_new_tokens`` ended."""
    min_tokens: int = Field(default=0, ge=0)
    """Shortest answer, in generated tokens."""
    max_tokens: int | None = Field(default=None, gt=0)
    """Longest answer, in generated tokens."""
    max_repetition: float | None = Field(default=None, ge=0, le=1)
    """Largest share of four-word sequences that occurred before in the same answer."""
    check: bool = False
    """Whether to leave out answers whose final result (boxed, or after ``#``) is not the original
    answer's. Rows without an original result are kept and counted."""


class TokenizerSettings(Settings):
    """The byte-level BPE tokenizer trained on the word problems."""

    vocab_size: int = Field(default=256, ge=128, le=65536)
    """Tokens in all, the special ones included; printable ASCII takes 95."""
