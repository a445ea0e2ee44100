"""Running the loss where the head's weights are: inside the model's own forward pass.

Wrappers such as FSDP gather a model's weights for the time of its forward pass, DDP and
torch.compile act on it, and peft puts adapters below it. A loss that wants hidden states and the
head's weight instead of logits must therefore run within, not after it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from angelshare.errors import AngelshareError

LossOf = Callable[[Tensor, nn.Module], Any]
"""Takes hidden states [B, L, H] and the head; what it returns, the model returns."""
PROBE_TOKENS, PROBE_TOLERANCE = 4, 0.01


def let_loss_run_inside(model: Any) -> None:
    """Give ``model`` the keyword ``loss_of`` of its forward pass; without it nothing changes.

    With ``model(input_ids=…, attention_mask=…, loss_of=f)`` no logits are computed and the result
    is that of ``f``. A peft model is changed in its base. Raises ``AngelshareError`` for a model
    whose logits are not a linear map of its last hidden states (soft caps, scales).
    """
    causal_lm: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    original = causal_lm.forward
    if hasattr(original, "runs_loss_inside"):
        return

    @wraps(original)
    def forward(*args: Any, loss_of: LossOf | None = None, **kwargs: Any) -> Any:
        if loss_of is None:
            return original(*args, **kwargs)
        return loss_of(_hidden_states(causal_lm, **kwargs), causal_lm.get_output_embeddings())

    forward.runs_loss_inside = True  # type: ignore[attr-defined]
    _check_linear(causal_lm)
    causal_lm.forward = forward


def _hidden_states(
    causal_lm: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor | None, **_: Any
) -> Tensor:
    body = causal_lm.get_decoder()
    states: Tensor = body(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False
    ).last_hidden_state
    return states


def _check_linear(causal_lm: PreTrainedModel) -> None:
    training = causal_lm.training
    causal_lm.eval()
    with torch.no_grad():
        ids = torch.arange(PROBE_TOKENS, device=causal_lm.device)[None]
        logits = causal_lm(input_ids=ids).logits
        weight, bias = head_parameters(causal_lm.get_output_embeddings())
        linear = nn.functional.linear(_hidden_states(causal_lm, ids, None), weight, bias)
    causal_lm.train(training)
    if (logits - linear).norm() > PROBE_TOLERANCE * logits.norm():
        raise AngelshareError(
            f"{type(causal_lm).__name__} does not make its logits by a linear head alone (a soft "
            "cap or a scale follows it), which this loss needs: use another student"
        )


def head_parameters(head: Any) -> tuple[Tensor, Tensor | None]:
    """Weight [V, H] and bias of a linear head, trained copies and low-rank updates of it included.

    Raises ``AngelshareError`` where there is no such head, and for dropout within its update.
    """
    if hasattr(head, "modules_to_save"):
        head = head.modules_to_save[head.active_adapters[0]]
    adapters = head.active_adapters if hasattr(head, "get_delta_weight") else []
    layer = head.get_base_layer() if adapters else head
    if not isinstance(layer, nn.Linear) or not layer.weight.is_floating_point():
        raise AngelshareError(
            f"the model's head is {type(layer).__name__}, not a linear layer in floating point: "
            "use another student, or leave its head out of quantisation"
        )
    weight = layer.weight
    for adapter in adapters:
        if not isinstance(head.lora_dropout[adapter], nn.Identity):
            raise AngelshareError(
                "a low-rank update of the head cannot have dropout here: set lora_dropout to 0 or "
                "leave the head out of target_modules"
            )
        weight = weight + head.get_delta_weight(adapter)
    return weight, layer.bias
