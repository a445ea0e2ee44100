"""What training and running a decoder takes of a GPU's memory, by calculation.

Bytes follow from the architecture and the settings alone, so that a grid can be judged before
anything is rented. Training holds weights, gradients, the optimizer's state and its float32 working
copies of the largest matrix, one hidden state per layer (gradient checkpointing) with one layer's
activations while it is computed again, and the logits of a chunk of positions. The count of a
layer's activations follows Korthikanti et al. (arXiv:2205.05198) with a gated feed-forward block
and an attention that stores no score matrix. Left out are the CUDA context, the allocator's
fragments and workspaces, about 2 to 4 GB together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from angelshare.student.fused import BLOCK_BYTES, CHUNK_BYTES

WORKING_COPIES = 3
"""Float32 tensors of a parameter's shape that transformers' Adafactor makes in a step: gradient,
update and weight; two when weights are float32 already."""
LOSS_BUFFERS = (CHUNK_BYTES["cuda"], BLOCK_BYTES["cuda"], BLOCK_BYTES["cuda"])
"""Bytes of float32 logits that the loss holds, at most: a chunk and two blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderShape:
    """A decoder with a gated feed-forward block, as its ``config.json`` states it."""

    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    intermediate: int
    vocabulary: int
    """Rows of the embedding, padding included."""
    tied: bool = False
    """Whether the head shares the embedding's matrix."""
    biases: bool = False
    """Whether queries, keys and values have biases (Qwen2.5)."""
    query_key_norms: bool = False
    """Whether queries and keys are normed (OLMo-2)."""

    @property
    def key_value_width(self) -> int:
        """Width of the keys, and of the values."""
        return self.hidden * self.key_value_heads // self.heads

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """Rows and columns of every weight matrix."""
        h, kv, inner = self.hidden, self.key_value_width, self.intermediate
        layer = [(h, h), (kv, h), (kv, h), (h, h), (inner, h), (inner, h), (h, inner)]
        return layer * self.layers + [(self.vocabulary, h)] * (1 if self.tied else 2)

    @property
    def vectors(self) -> int:
        """Elements of all norms and biases."""
        width = self.hidden + self.key_value_width
        layer = 2 * self.hidden + self.query_key_norms * width
        layer += self.biases * (width + self.key_value_width)
        return layer * self.layers + self.hidden

    @property
    def parameters(self) -> int:
        """Elements of all weights."""
        return sum(rows * columns for rows, columns in self.matrices) + self.vectors


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes, by what they hold."""

    weights: int
    gradients: int
    optimizer: int
    """The optimizer's state and its working copies."""
    activations: int
    logits: int
    """What the loss has of them at once."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def training_memory(
    shape: DecoderShape,
    *,
    precision: Literal["auto", "bfloat16"],
    batch_size: int,
    length: int,
    optimizer: Literal["adafactor", "adamw"] = "adafactor",
    checkpointing: bool = True,
) -> Memory:
    """Peak bytes of a training step on one GPU.

    ``precision`` is `TrainingSettings.precision` on a GPU: ``auto`` keeps float32 weights and
    gradients, and bfloat16 copies of the weights during a forward pass (autocast).
    """
    mixed = precision == "auto"
    width = 4 if mixed else 2
    tokens = batch_size * length
    hidden = tokens * shape.hidden * width
    layer = tokens * layer_activations(shape)
    held = layer + hidden * shape.layers if checkpointing else layer * shape.layers
    return Memory(
        weights=shape.parameters * (6 if mixed else 2),
        gradients=shape.parameters * width,
        optimizer=_optimizer_bytes(shape, optimizer, mixed),
        activations=held + 2 * hidden,
        logits=sum(min(size, 4 * tokens * shape.vocabulary) for size in LOSS_BUFFERS),
    )


def inference_memory(shape: DecoderShape, *, sequences: int, length: int) -> Memory:
    """Bytes of bfloat16 weights and the key-value cache of ``sequences`` at ``length`` tokens."""
    cache = 2 * 2 * shape.layers * shape.key_value_width * sequences * length
    return Memory(
        weights=2 * shape.parameters,
        gradients=0,
        optimizer=0,
        activations=cache,
        logits=sequences * shape.vocabulary * 4,
    )


def layer_activations(shape: DecoderShape) -> int:
    """Bytes that one layer keeps for its backward pass, per token, in bfloat16 but for the norms.

    Inputs of the projections, queries and keys before and after their norm, values, attention's
    output; two norms in float32; gate, its activation, up and their product.
    """
    attention = 2 * (3 * shape.hidden + 2 * shape.hidden + 3 * shape.key_value_width)
    norms = 2 * 4 * shape.hidden
    feed_forward = 2 * (shape.hidden + 4 * shape.intermediate)
    return attention + norms + feed_forward


def _optimizer_bytes(shape: DecoderShape, optimizer: str, mixed: bool) -> int:
    if optimizer == "adamw":
        return shape.parameters * (8 if mixed else 4)
    factors = sum(rows + columns for rows, columns in shape.matrices) + shape.vectors
    largest = max(rows * columns for rows, columns in shape.matrices)
    return 4 * (factors + largest * (WORKING_COPIES - mixed))


def _family(
    vocabulary: int, *, biases: bool = False, query_key_norms: bool = False
) -> Callable[[int, int, int, int, int], DecoderShape]:
    """What the models of a family share; a member's sizes are the arguments of the result."""

    def member(
        hidden: int, layers: int, heads: int, key_value_heads: int, intermediate: int
    ) -> DecoderShape:
        return DecoderShape(
            hidden=hidden,
            layers=layers,
            heads=heads,
            key_value_heads=key_value_heads,
            intermediate=intermediate,
            vocabulary=vocabulary,
            biases=biases,
            query_key_norms=query_key_norms,
        )

    return member


_OLMO2 = _family(100_352, query_key_norms=True)
_LLAMA31 = _family(128_256)
_QWEN25 = _family(152_064, biases=True)

SHAPES: dict[str, DecoderShape] = {
    "OLMo-2 1B": _OLMO2(2048, 16, 16, 16, 8192),
    "OLMo-2 7B": _OLMO2(4096, 32, 32, 32, 11_008),
    "OLMo-2 13B": _OLMO2(5120, 40, 40, 40, 13_824),
    "OLMo-2 32B": _OLMO2(5120, 64, 40, 8, 27_648),
    "Llama-3.1 8B": _LLAMA31(4096, 32, 32, 8, 14_336),
    "Llama-3.1 70B": _LLAMA31(8192, 80, 64, 8, 28_672),
    "Qwen2.5 7B": _QWEN25(3584, 28, 28, 4, 18_944),
    "Qwen2.5 72B": _QWEN25(8192, 80, 64, 8, 29_568),
}
"""The models of ``config/grids``, from their published configurations."""
