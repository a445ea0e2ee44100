"""Settings of the student stage: where weights come from, what the loss is, how training runs."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from angelshare.errors import AngelshareError
from angelshare.settings import Settings


class ScratchStudent(Settings):
    """A student of the OLMo-2 architecture with random weights, tied embeddings."""

    hidden_size: int = Field(gt=0)
    """Width of the residual stream."""
    layers: int = Field(gt=0)
    """Transformer blocks."""
    heads: int = Field(gt=0)
    """Attention heads; must divide ``hidden_size`` into an even number of dimensions each."""
    intermediate_size: int = Field(gt=0)
    """Width of the gated feed-forward layer."""
    rope_theta: float = Field(default=10_000.0, gt=0)
    """Base of the rotary position frequencies; sequences of tens of tokens are learnt much faster
    with a few hundred."""

    @model_validator(mode="after")
    def _whole_heads(self) -> ScratchStudent:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(
                f"such that hidden_size is a multiple of twice the heads (got hidden_size "
                f"{self.hidden_size}, heads {self.heads})"
            )
        return self


class PretrainedStudent(Settings):
    """A causal language model in a local folder or on the Hugging Face hub."""

    model: str = Field(min_length=1)
    """Hub name (``allenai/OLMo-2-0425-1B``) or a local folder."""
    revision: str | None = None
    """The hub commit; required for hub names, so that the recipe says which weights it means."""
    keep_layers: list[Annotated[int, Field(ge=0)]] | None = Field(default=None, min_length=1)
    """The model's layers that the student keeps, counted from 0, in their order; null keeps all.
    With the teacher as the model this is the usual start of a smaller student (DistilBERT,
    arXiv:1910.01108)."""

    @model_validator(mode="after")
    def _ascending(self) -> PretrainedStudent:
        if self.keep_layers != (self.keep_layers and sorted(set(self.keep_layers))):
            raise ValueError(f"keep_layers in ascending order (got {self.keep_layers})")
        return self


def _origin(value: object) -> str:
    named = "model" in value if isinstance(value, dict) else hasattr(value, "model")
    return "pretrained" if named else "scratch"


StudentInit = Annotated[
    Annotated[ScratchStudent, Tag("scratch")] | Annotated[PretrainedStudent, Tag("pretrained")],
    Discriminator(_origin),
]
"""Where a student's first weights come from: a shape, or a model that exists."""


LayerMap = Annotated[
    dict[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]], Field(min_length=1)
]


class FeatureSettings(Settings):
    """The loss of hidden states that are drawn to a teacher's."""

    weight: float = Field(default=1.0, ge=0)
    """What its mean over the step's vectors counts, beside the mean loss over target tokens."""
    loss: Literal["mse", "cosine", "cka"] = "mse"
    """``mse``: squared error of a learned linear projection, as a share of the mean square of the
    teacher's elements in that layer; ``cosine``: 1 - cosine of the same; ``cka``: 1 - linear CKA
    over all vectors of an optimizer step, without a projection."""
    layers: LayerMap | None = None
    """The student's layer for each of the teacher's that are cached; null: the one at the same
    share of the depth. Layer i is the output of block i on both sides."""


class RelationSettings(Settings):
    """The loss of relations between sequences (RKD, Park et al. 2019, arXiv:1904.05068)."""

    weight: float = Field(default=1.0, ge=0)
    """What the two terms together count, beside the mean loss over target tokens."""
    distance: float = Field(default=1.0, ge=0)
    """Weight of the term of distances between two sequences, in units of their mean."""
    angle: float = Field(default=2.0, ge=0)
    """Weight of the term of angles between three."""
    layers: LayerMap | None = None
    """As for features."""


class LoraSettings(Settings):
    """A low-rank update of a pretrained student (Hu et al. 2021, arXiv:2106.09685), merged into its
    weights before it is published: what is scored and metered is the merged model."""

    rank: int = Field(default=16, gt=0)
    """Rank of each matrix's update."""
    alpha: float = Field(default=32.0, gt=0)
    """The update counts alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of a layer's inputs that its update does not see in training."""
    target_modules: list[str] | Literal["all-linear"] = "all-linear"
    """Layers that are updated, by the end of their names (``q_proj``); ``all-linear``: every linear
    layer of the blocks."""


class LossSettings(Settings):
    """The distillation loss: alpha · CE + (1 - alpha) · T² · D(teacher, student), D at T.

    Both sides count the mass outside the teacher's cached tokens as one more outcome, the tail, so
    that D is a true divergence. T² (for ``uld`` T) keeps the size of its gradient independent of T.
    """

    alpha: float = Field(default=0.5, ge=0, le=1)
    """Weight of the cross-entropy on the hard labels; the teacher's divergence has the rest."""
    temperature: float = Field(default=1.0, gt=0)
    """T of both distributions; one of the logit cache's grid."""
    divergence: Literal["forward_kl", "reverse_kl", "jsd", "uld"] = "forward_kl"
    """``forward_kl``, KL(teacher ‖ student), covers all that the teacher does; ``reverse_kl``,
    KL(student ‖ teacher), seeks its modes; ``jsd`` is the generalised Jensen-Shannon divergence
    between them. The last two see the student's mass outside the cached tokens only as a sum.
    ``uld``, of universal logit distillation (arXiv:2402.12030), is the distance between the sorted
    probabilities, whatever their tokens: the one that two tokenizers can have."""
    beta: float | None = Field(default=None, gt=0, lt=1)
    """The teacher's share in the mixture of ``jsd``, 0.5 being symmetric; only for ``jsd``, whose
    limits at 0 and 1 are ``forward_kl`` and ``reverse_kl``."""
    feature: FeatureSettings = FeatureSettings()
    """The term of pipelines with ``features``, which comes on top."""
    relation: RelationSettings = RelationSettings()
    """The term of pipelines with ``relations``, which comes on top."""

    @property
    def by_rank(self) -> bool:
        """Whether it compares ranks instead of tokens, so that tokenizers may differ."""
        return self.divergence == "uld"

    def terms(self, roles: Collection[str]) -> dict[str, Any]:
        """What decides the loss of a run that reads a teacher in these ``roles``."""
        own = self.model_dump(mode="json")
        beside = {"features": own.pop("feature"), "relations": own.pop("relation")}
        chosen = {role: value for role, value in beside.items() if role in roles}
        divergence = "logits" in roles or "on_policy" in roles
        return {**(own if divergence else {}), **chosen}

    @model_validator(mode="after")
    def _beta_with_jsd(self) -> LossSettings:
        if self.divergence == "jsd" and self.beta is None:
            raise ValueError("with a beta where divergence is jsd: 0.5 is the symmetric one")
        if self.divergence != "jsd" and self.beta is not None:
            raise ValueError(
                f"without beta where divergence is {self.divergence}: it belongs to jsd (got beta "
                f"{self.beta})"
            )
        return self


class OnPolicySettings(Settings):
    """Answers that the student itself gives while it is trained, and a teacher in memory that says
    what it would have said at every token of them (generalised knowledge distillation, Agarwal et
    al. 2023, arXiv:2306.13649)."""

    execution = frozenset({"batch_size"})

    student_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the optimizer steps whose answers are the student's own, evenly spaced; λ of the
    paper. The other steps have those of the data. Hard labels count in these alone."""
    max_new_tokens: int = Field(default=128, gt=0)
    """Tokens of an answer of the student; ``training.max_length`` cuts prompt and answer."""
    temperature: float = Field(default=1.0, ge=0)
    """Temperature at which it answers; 0 takes the most probable token. That of the divergence is
    ``loss.temperature``, any one."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus from which it answers."""
    top_k: int = Field(default=100, gt=0)
    """Tokens of the teacher that the divergence tells apart at a position; all others are one
    outcome, whose mass is exact. The size of the vocabulary tells all apart."""
    batch_size: int = Field(default=64, gt=0)
    """Prompts that it answers at once."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The type of the teacher's weights; auto is bfloat16 on a GPU and float32 on a CPU."""
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """How the teacher computes attention."""
    teacher: Literal["memory"] = "memory"
    """Where the teacher is: loaded beside the student. A server of vLLM gives log-probabilities of
    a few tokens at temperature 1 and no partition at another."""

    @field_validator("teacher", mode="before")
    @classmethod
    def _in_memory(cls, value: object) -> object:
        if value != "memory":
            raise ValueError(
                "memory: a server gives the best log-probabilities at temperature 1 and not the "
                "partition that the loss needs at others, and its joules are on no meter here"
            )
        return value


class OptimizerSettings(Settings):
    """What turns gradients into steps."""

    name: Literal["adafactor", "adamw", "muon"] = "adafactor"
    """``adafactor`` without relative steps or parameter scaling, the paper's; ``adamw``; or
    ``muon`` on the matrices of the blocks with AdamW on embeddings and norms."""
    learning_rate: float = Field(default=5e-5, gt=0)
    """Peak learning rate; of the matrices for ``muon``."""
    adamw_learning_rate: float = Field(default=4e-3, gt=0)
    """Peak learning rate of what ``muon`` leaves to AdamW; unused otherwise."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled decay of the matrices, as a fraction of the learning rate."""


class StoppingSettings(Settings):
    """When training ends before its last step."""

    tolerance: float = Field(default=2e-3, ge=0)
    """Validation cross-entropy (nats per target token) must fall by more than this below the last
    value that did so, or the evaluation counts against ``patience``."""
    patience: int = Field(default=3, gt=0)
    """Evaluations in a row without such an improvement after which training stops."""


class TrainingSettings(Settings):
    """How every student is trained, whatever the pipeline."""

    execution = frozenset({"eval_batch_size", "report_to"})

    max_steps: int = Field(default=1000, gt=0)
    """Optimizer steps of the whole schedule."""
    max_epochs: float | None = Field(default=None, gt=0)
    """Passes over the training data after which the schedule ends if ``max_steps`` comes later."""
    warmup_steps: int = Field(default=100, ge=0)
    """Steps of linear warm-up before the cosine that ends at zero; fewer than the schedule has."""
    batch_size: int = Field(default=4, gt=0)
    """Sequences of one forward pass."""
    accumulation: int = Field(default=16, gt=0)
    """Forward passes of one optimizer step; the loss is divided by the target tokens of all."""
    eval_batch_size: int = Field(default=1, gt=0)
    """Sequences of one forward pass on the validation split; the metric does not depend on it."""
    eval_every: int = Field(default=100, gt=0)
    """Optimizer steps between evaluations; each leaves a checkpoint to resume from."""
    max_length: int = Field(default=1024, gt=1)
    """Tokens of a sequence; longer ones are cut on the right."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """``auto`` computes in bfloat16 where the GPU has it; weights and loss stay in float32.
    ``bfloat16`` keeps the weights in it too: 4 bytes a parameter instead of 10, which is what lets
    13B fit one GPU of 80 GB, at the price of rounding each update. The loss stays in float32."""
    report_to: list[Literal["wandb", "mlflow", "tensorboard"]] = []
    """Where the Trainer logs curves to, through its own integrations and their environment
    variables; their packages are not part of the project's environment."""
    gradient_checkpointing: bool = False
    """Whether activations are computed again in the backward pass, to save memory."""
    optimizer: OptimizerSettings = OptimizerSettings()
    """The optimizer."""
    stopping: StoppingSettings = StoppingSettings()
    """Early stopping."""

    def divided(self, processes: int) -> tuple[int, int]:
        """Sequences of a forward pass, and passes of an optimizer step, for each process.

        An optimizer step has the rows that the settings say, however many processes share them, and
        no process reads more at once than ``batch_size``. Raises ``AngelshareError`` where they
        cannot share them evenly.
        """
        rows = self.batch_size * self.accumulation
        if rows % processes:
            fitting = [number for number in range(1, rows + 1) if rows % number == 0]
            below = [number for number in fitting if number < processes][-1:]
            above = [number for number in fitting if number > processes][:1]
            raise AngelshareError(
                f"{processes} processes (gpus x nodes) cannot share the {rows} sequences of an "
                f"optimizer step evenly (batch_size {self.batch_size} x accumulation "
                f"{self.accumulation}): use {' or '.join(map(str, below + above))}"
            )
        share = rows // processes
        batch = max(n for n in range(1, min(self.batch_size, share) + 1) if share % n == 0)
        return batch, share // batch
