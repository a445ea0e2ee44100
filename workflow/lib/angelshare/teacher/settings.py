"""Teachers, and the settings of their stages: the demo teacher, logit capture and generation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from angelshare.settings import PROJECT_LICENCE, Settings


class DemoTeacher(Settings):
    """A small OLMo-2 trained here on word problems of its own, where no hub can be reached."""

    execution = frozenset({"checkpoint_steps"})

    seed: int = Field(default=0, ge=0)
    """Decides the initial weights and the order of the problems."""
    problems: int = Field(default=20000, gt=0)
    """Different training problems, none of them in the dataset."""
    steps: int = Field(default=900, gt=0)
    """Optimizer steps."""
    batch_size: int = Field(default=24, gt=0)
    """Problems per step."""
    hidden_size: int = Field(default=128, gt=0, multiple_of=8)
    """Width of the residual stream."""
    intermediate_size: int = Field(default=344, gt=0)
    """Width of the gated feed-forward block."""
    layers: int = Field(default=4, gt=0)
    """Decoder layers."""
    heads: int = Field(default=4, gt=0)
    """Attention heads."""
    rope_theta: float = Field(default=500.0, gt=0)
    """Base of the rotary position frequencies; the usual 10,000 learns sequences of 40 tokens much
    more slowly."""
    max_length: int = Field(default=128, gt=16)
    """Positions of the model, and tokens a problem may take."""
    matrix_lr: float = Field(default=0.02, gt=0)
    """Muon's peak learning rate, for the layers' matrices."""
    other_lr: float = Field(default=4e-3, gt=0)
    """AdamW's peak learning rate, for the embedding and the norms."""
    warmup_steps: int = Field(default=20, ge=0)
    """Steps of linear warm-up; a linear decay to zero follows."""
    question_weight: float = Field(default=0.25, ge=0, le=1)
    """Weight of the question's tokens in the loss; the answer's weigh 1."""
    checkpoint_steps: int = Field(default=100, gt=0)
    """Steps between checkpoints, from which a killed run goes on."""

    @model_validator(mode="after")
    def _heads(self) -> DemoTeacher:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size must be an even multiple of heads ({self.heads})")
        return self


class EmbeddedTeacher(Settings):
    """A small OLMo-2 teacher that the workflow trains itself, on word problems of its own."""

    demo: DemoTeacher
    """How it is made."""
    dataset: str
    """The entry of ``datasets`` whose kind of problem it learns; none of its own rows."""
    tokenizer: str = "demo"
    """The entry of ``tokenizers`` it reads with; its students must use the same."""
    license: str | None = PROJECT_LICENCE
    """The model's licence; recorded with all that it makes, and part of no key."""
    outputs_restricted: bool = False
    """Whether that licence restricts training on the model's outputs: corpora and caches
    then carry a warning."""


class CitedScore(Settings):
    """A teacher's score that was published and is not measured here."""

    score: float = Field(gt=0)
    """In the unit that the students' scores have here."""
    stderr: float | None = Field(default=None, ge=0)
    """Its standard error; null counts as exact."""
    source: str = Field(min_length=1)
    """Where it stands: a table of a paper, a model card. Labels every result that rests on it."""


class PretrainedTeacher(Settings):
    """A causal language model, in safetensors, in a local folder or on the Hugging Face hub."""

    model: str = Field(min_length=1)
    """Hub name (``allenai/OLMo-2-0325-32B-SFT``) or a local folder."""
    revision: str | None = None
    """The hub commit; required for hub names, so that the recipe says which weights it means."""
    scores: dict[str, CitedScore] = {}
    """Published scores by task (``gsm8k``, ``mt_bench_101``). They take the place of measured ones
    as what students are compared with, and are labelled so."""
    trust_remote_code: bool = False
    """Whether Python code that lies beside the weights may run on this machine, with all your
    rights. Only for a model whose code you have read."""
    license: str | None = None
    """The model's licence, an SPDX identifier where there is one (``Apache-2.0``, or
    ``LicenseRef-…``). Recorded with all that it makes, and part of no key."""
    outputs_restricted: bool = False
    """Whether that licence restricts training on the model's outputs: corpora and caches
    then carry a warning."""


class AssistantTeacher(Settings):
    """A student that teaches others: one run of a grid, kept in the store with its energy."""

    pipeline: str
    """A name from ``pipelines``."""
    student: str
    """The name from ``students`` that it is."""
    dataset: str
    """The name from ``datasets`` that it is trained on."""
    teacher: str | None = None
    """Its own teacher, which may be an assistant too. What a student of this assistant scores is
    compared with the first of that chain."""
    seed: int
    """Decides first weights and the order of the data."""
    temperature: float | None = Field(default=None, gt=0)
    """Distillation temperature; null: the one of ``loss``."""
    alpha: float | None = Field(default=None, ge=0, le=1)
    """Weight of the hard-label loss; null: the one of ``loss``."""
    labelled: int | None = Field(default=None, gt=0)
    """Rows of the dataset's ``train`` split; null: the dataset's own number."""
    max_new_tokens: int | None = Field(default=None, gt=0)
    """Longest answers of its teacher; null: the one of ``generation``."""
    generation: dict[str, Any] = {}
    """Changes to ``generation`` for this assistant alone."""
    answers: dict[str, Any] = {}
    """Changes to ``answers`` for this assistant alone."""
    training: dict[str, Any] = {}
    """Changes to ``training`` for this assistant alone."""
    license: str | None = None
    """The model's licence; recorded with all that it makes, and part of no key."""
    outputs_restricted: bool = False
    """Whether that licence restricts training on the model's outputs; the licence of its own
    teacher is looked at in any case."""


def _origin(value: object) -> str:
    def has(name: str) -> bool:
        return name in value if isinstance(value, dict) else hasattr(value, name)

    return "assistant" if has("pipeline") else "embedded" if has("demo") else "pretrained"


Teacher = Annotated[
    Annotated[EmbeddedTeacher, Tag("embedded")]
    | Annotated[PretrainedTeacher, Tag("pretrained")]
    | Annotated[AssistantTeacher, Tag("assistant")],
    Discriminator(_origin),
]
"""A teacher: trained here from nothing (it has ``demo``), as a student (``pipeline``), or found."""


class TopkTailSettings(Settings):
    """The most probable tokens with their log-probabilities, and the exact mass of the rest."""

    name: Literal["topk_tail"] = "topk_tail"
    """``topk_tail``."""
    top_k: int = Field(default=100, gt=0)
    """Most tokens kept at a position."""
    top_p: float = Field(default=0.98, gt=0, le=1)
    """The fewest tokens that hold this probability are kept, up to ``top_k``; 1 keeps ``top_k``."""

    def __str__(self) -> str:
        cut = f", top-p {self.top_p:g}" if self.top_p < 1 else ""
        return f"top {self.top_k}{cut}"


class RskdSettings(Settings):
    """Tokens drawn from the teacher: a third of the size; for a loss at temperature 1."""

    name: Literal["rskd"] = "rskd"
    """``rskd``."""
    samples: int = Field(default=50, gt=0)
    """Draws at a position; a token's weight is its share of them."""
    seed: int = Field(default=0, ge=0)
    """With a row's id, decides its draws."""

    def __str__(self) -> str:
        return f"{self.samples} draws, seed {self.seed}"


class CaptureSettings(Settings):
    """What is kept of the teacher's distribution at each target position."""

    execution = frozenset({"batch_tokens", "tensor_parallel"})

    backend: Literal["transformers", "vllm"] = "transformers"
    """The program that runs the teacher. ``vllm`` spreads one model over several GPUs, but gives
    only the best log-probabilities: temperature 1 alone, ``topk_tail`` alone, no entropy
    (docs/logits.md)."""
    tensor_parallel: int = Field(default=1, gt=0)
    """GPUs that hold one copy of the model (vllm); what ``hardware.gpus`` gives a job."""
    codec: TopkTailSettings | RskdSettings = Field(default=TopkTailSettings(), discriminator="name")
    """Which tokens are kept and how they are stored."""
    temperatures: tuple[float, ...] = (1.0, 2.0, 4.0)
    """Temperatures at which the log-partition is exact; contains 1."""
    max_length: int = Field(default=1024, gt=1)
    """Tokens of a sequence; what is beyond is cut from the right."""
    batch_tokens: int = Field(default=4096, gt=0)
    """Tokens of a batch, padding included; decides speed and memory, not the result."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The weights' type; auto is bfloat16 on a GPU and float32 on a CPU. Sums are float32."""
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """How attention is computed (transformers)."""

    @field_validator("temperatures")
    @classmethod
    def _grid(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if 1.0 not in value or min(value) <= 0:
            raise ValueError("must be positive and contain 1.0")
        return tuple(sorted(set(value)))

    @model_validator(mode="after")
    def _what_the_back_end_gives(self) -> CaptureSettings:
        if self.backend == "transformers":
            if self.tensor_parallel > 1:
                raise ValueError("with tensor_parallel 1 where backend is transformers: use vllm")
            return self
        if self.temperatures != (1.0,):
            raise ValueError(
                "with temperatures [1.0] where backend is vllm: its log-probabilities give the "
                f"partition at no other (got {list(self.temperatures)}); use backend transformers"
            )
        if self.codec.name != "topk_tail":
            raise ValueError(
                "with the codec topk_tail where backend is vllm: it gives the best tokens, and "
                f"{self.codec.name} draws from all of them; use backend transformers"
            )
        return self

    @property
    def usable_temperatures(self) -> tuple[float, ...]:
        """The temperatures that a loss on this cache may have."""
        return (1.0,) if self.codec.name == "rskd" else self.temperatures


class StatesSettings(Settings):
    """Which hidden states of a teacher are cached, and how.

    The pass is by transformers, with ``max_length``, ``batch_tokens``, ``dtype`` and
    ``attn_implementation`` of ``capture``.
    """

    execution = frozenset({"limit_gb"})

    layers: (
        Annotated[int, Field(gt=0)]
        | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    ) = 1
    """Outputs of which blocks, counted from 1; 0 is what goes into the first. A number n instead of
    a list: n blocks at equal steps, the last among them."""
    positions: Literal["targets", "mean_of_targets", "mean_of_tokens"] = "targets"
    """``targets``: a vector at every position that predicts a target. ``mean_of_targets``,
    ``mean_of_tokens``: one vector a sequence, the mean over these positions or over all."""
    fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of each sequence's targets that is kept, at least one; only for ``targets``."""
    seed: int = Field(default=0, ge=0)
    """With a row's id, decides which these are."""
    format: Literal["float16", "int8"] = "float16"
    """``float16``, or ``int8`` with one scale a vector: half the size, an error of at most 1/254 of
    the vector's largest element."""
    limit_gb: float = Field(default=10.0, gt=0)
    """Largest size of the artifact, in 10⁹ bytes before compression; more is refused before the
    model is loaded."""

    @field_validator("layers")
    @classmethod
    def _ascending(cls, value: int | tuple[int, ...]) -> int | tuple[int, ...]:
        if not isinstance(value, int) and list(value) != sorted(set(value)):
            raise ValueError(f"in ascending order, each once (got {list(value)})")
        return value

    @model_validator(mode="after")
    def _fraction_of_targets(self) -> StatesSettings:
        if self.fraction < 1 and self.positions != "targets":
            raise ValueError(f"without a fraction where positions is {self.positions}")
        return self

    @property
    def pooled(self) -> bool:
        """Whether there is one vector a sequence."""
        return self.positions != "targets"

    def vector_bytes(self, width: int) -> int:
        """Size of one vector of one layer before compression."""
        return width + 4 if self.format == "int8" else 2 * width

    def ways_out(self) -> str:
        """What makes a cache of hidden states smaller, of what is not done yet."""
        ways = ["keep fewer layers"]
        if not self.pooled:
            ways += ["lower fraction", "keep one vector a sequence (positions mean_of_tokens)"]
        if self.format != "int8":
            ways.append("use format int8")
        return f"In this entry of states: {', '.join(ways)}, or raise limit_gb."

    def __str__(self) -> str:
        layers = self.layers
        if isinstance(layers, int):
            which = f"{layers} layer{'s' * (layers > 1)}"
        else:
            which = f"layers {list(layers)}"
        share = f" ({self.fraction:g} of them)" if self.fraction < 1 else ""
        return f"{which}, {self.positions.replace('_', ' ')}{share}, {self.format}"


class StatesCapture(StatesSettings):
    """What the job that caches hidden states works with: its settings and those of the pass."""

    execution = StatesSettings.execution | {"batch_tokens"}

    max_length: int
    batch_tokens: int
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"]

    @classmethod
    def of(cls, states: StatesSettings, capture: CaptureSettings) -> StatesCapture:
        """``states`` with the pass of ``capture``."""
        own = ("max_length", "batch_tokens", "dtype", "attn_implementation")
        return cls(**states.model_dump(), **capture.model_dump(include=set(own)))


class DecodingSettings(Settings):
    """How the teacher answers prompts."""

    execution = frozenset({"batch_size", "tensor_parallel", "prefix_caching", "gpu_memory"})

    backend: Literal["transformers", "vllm"] = "transformers"
    """The program that generates."""
    max_new_tokens: int = Field(default=512, gt=0)
    """Tokens of an answer; a longer one ends with finish_reason ``length``."""
    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature; 0 takes the most probable token."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus: the smallest set of tokens with this probability is sampled from."""
    seed: int = Field(default=0, ge=0)
    """With the row's id, decides what is sampled for it."""
    max_model_len: int | None = Field(default=None, gt=1)
    """Prompt and answer together; null takes what the model has positions for."""
    batch_size: int = Field(default=64, gt=0)
    """Prompts answered at once; in float32 it decides speed and memory, not the result."""
    tensor_parallel: int = Field(default=1, gt=0)
    """GPUs that share each layer (vLLM); no more than ``hardware.gpus``."""
    prefix_caching: bool = True
    """Whether prompts that begin alike share their computation (vLLM)."""
    gpu_memory: float = Field(default=0.9, gt=0, le=1)
    """Share of each GPU's memory for weights and the key-value cache (vLLM)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The weights' type; auto is bfloat16 on a GPU and float32 on a CPU."""
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """How attention is computed (transformers)."""
