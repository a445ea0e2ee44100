"""A model in fewer bits, for its scores and its energy: post-training, by torchao, in place.

``int8`` keeps each linear layer of the blocks in 8 bits, one scale for each output, and rounds the
layer's inputs to 8 bits as they come, one scale for each token. Embeddings and the head stay as
they are: they are one matrix in a model that ties them.
"""

from __future__ import annotations

from torch import nn

from angelshare.errors import AngelshareError


def quantise(model: nn.Module, kind: str) -> None:
    """Quantise ``model`` in place; ``AngelshareError`` where torchao does not load."""
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    except ImportError as error:
        raise AngelshareError(
            f"students.<name>.quantised: {kind} needs torchao, which does not load ({error}): "
            "install the version that requirements.lock names"
        ) from error
    if kind != "int8":
        raise AngelshareError(f"there is no precision {kind!r}: use int8")
    head = model.get_output_embeddings()  # type: ignore[operator]
    chosen = {id(part) for part in model.modules() if type(part) is nn.Linear and part is not head}
    if not chosen:
        raise AngelshareError(f"{type(model).__name__} has no linear layer that could be quantised")
    quantize_(
        model,
        Int8DynamicActivationInt8WeightConfig(),
        filter_fn=lambda part, _name: id(part) in chosen,
    )
