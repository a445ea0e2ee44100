"""Settings of the data stage: where problems come from and how they are split."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

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


class Conversations(Settings):
    """How rows of chat ``messages`` become a seeded, split sample."""

    execution = frozenset({"license"})

    messages_field: str = "messages"
    """The column that holds a list of ``{role, content}``."""
    id_field: str | None = None
    """A column with unique ids; without one, rows are named by their number."""
    seed: int = Field(default=0, ge=0)
    """Decides which rows go to which split."""
    labelled: int | None = Field(default=None, gt=0)
    """Rows of split ``train``; null takes all that the other splits leave."""
    unlabelled: int = Field(default=0, ge=0)
    """Rows of split ``unlabelled``, whose last answer is left out."""
    validation: int = Field(default=200, gt=0)
    """Rows of split ``validation``."""
    test: int = Field(default=0, ge=0)
    """Rows of split ``test``."""
    license: str | None = None
    """The data's licence, an SPDX identifier where there is one (``ODC-By-1.0``). Recorded with all
    that is made from it, and part of no key. Null: what the hub says of it."""


class FileSource(Conversations):
    """A local JSONL or Parquet file in the hubs' ``messages`` format."""

    source: Literal["file"]
    """Which kind of source this is."""
    path: str = Field(min_length=1)
    """The ``.jsonl`` or ``.parquet`` file."""


class HubSource(Conversations):
    """A dataset of the Hugging Face hub, at a pinned revision."""

    source: Literal["hub"]
    """Which kind of source this is."""
    name: str = Field(min_length=1)
    """The dataset's name, such as ``allenai/tulu-3-sft-mixture``."""
    subset: str | None = None
    """The dataset's configuration, where it has several."""
    revision: str = Field(pattern="^[0-9a-f]{40}$")
    """The commit to read: a branch or tag could change under the recipe."""
    hub_split: str = "train"
    """The hub's split to sample from."""


DataSource = Annotated[WordProblems | FileSource | HubSource, Field(discriminator="source")]


class TokenizerSettings(Settings):
    """The byte-level BPE tokenizer trained on the word problems."""

    vocab_size: int = Field(default=256, ge=128, le=65536)
    """Tokens in all, the special ones included; printable ASCII takes 95."""
