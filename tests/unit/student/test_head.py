"""The loss inside the model's forward pass, however the model is wrapped."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from transformers import GraniteConfig, GraniteForCausalLM, Olmo2Config, Olmo2ForCausalLM, set_seed

from angelshare.errors import AngelshareError
from angelshare.student.head import head_parameters, let_loss_run_inside
from angelshare.student.losses import IGNORED
from angelshare.student.settings import LossSettings
from angelshare.student.trainer import TargetLoss

from .oracle import teacher_of

VOCAB, PADDED, LENGTH = 37, 40, 12
KD = LossSettings(alpha=0.3, temperature=2.0)
SHAPE = {
    "vocab_size": PADDED,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def olmo(tied: bool = True) -> Olmo2ForCausalLM:
    set_seed(1)
    return Olmo2ForCausalLM(Olmo2Config(**SHAPE, tie_word_embeddings=tied))


def batch() -> dict[str, Tensor]:
    """Four padded rows with targets in their second half; and their positions' teacher."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1, VOCAB, (4, LENGTH), generator=generator)
    lengths = torch.tensor([12, 7, 10, 12])
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    labels = torch.where(mask.bool() & (torch.arange(LENGTH) > 4), ids, IGNORED)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def batch_and_loss(rows: slice = slice(None)) -> tuple[dict[str, Tensor], TargetLoss]:
    """Some of the batch's rows, and their distillation loss."""
    whole = batch()
    generator = torch.Generator().manual_seed(3)
    teacher_BLV = 2 * torch.randn(4, LENGTH - 1, VOCAB, generator=generator)
    labels = whole.pop("labels")[rows]
    teacher = teacher_of(teacher_BLV[rows][labels[:, 1:] != IGNORED], 5, KD.temperature)
    inputs = {name: tensor[rows] for name, tensor in whole.items()}
    return inputs, TargetLoss(labels, teacher, KD, VOCAB)


def loss_inside(model: nn.Module, rows: slice = slice(None)) -> Tensor:
    """The loss as the trainer computes it."""
    inputs, loss_of = batch_and_loss(rows)
    loss: Tensor = model(**inputs, loss_of=loss_of).loss
    return loss


def loss_from_logits(model: nn.Module) -> Tensor:
    """The same from the logits of the unchanged model, head and its gradient by autograd."""
    inputs, loss_of = batch_and_loss()
    identity = nn.Linear(PADDED, PADDED, bias=False).requires_grad_(False)
    nn.init.eye_(identity.weight)
    return loss_of(model(**inputs).logits, identity).loss


def gradients(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    loss(model).backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def assert_same(model: nn.Module) -> dict[str, Tensor]:
    """Loss and gradients inside the model are those from its logits."""
    let_loss_run_inside(model)
    torch.testing.assert_close(loss_inside(model), loss_from_logits(model))
    inside = gradients(model, loss_inside)
    torch.testing.assert_close(inside, gradients(model, loss_from_logits))
    assert all(gradient.abs().max() > 0 for gradient in inside.values())
    return inside


@pytest.mark.parametrize("tied", [True, False])
def test_the_loss_inside_is_that_of_the_logits(tied: bool) -> None:
    found = assert_same(olmo(tied))
    assert ("lm_head.weight" in found) == (not tied)
    if not tied:
        assert found["lm_head.weight"][VOCAB:].abs().max() == 0


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "lm_head"]},
    ],
    ids=["attention", "saved_head", "head"],
)
def test_low_rank_students(options: dict[str, list[str]]) -> None:
    model = get_peft_model(olmo(tied=False), LoraConfig(task_type="CAUSAL_LM", r=2, **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    found = assert_same(model)
    assert len(found) == sum(parameter.requires_grad for parameter in model.parameters())
    assert not any("base_layer" in name for name in found)


def test_dropout_within_the_head_is_refused() -> None:
    choice = LoraConfig(task_type="CAUSAL_LM", target_modules=["lm_head"], lora_dropout=0.1)
    with pytest.raises(AngelshareError, match=r"set lora_dropout to 0"):
        let_loss_run_inside(get_peft_model(olmo(tied=False), choice))


def test_a_head_that_scales_its_logits_is_refused() -> None:
    model = GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=8.0))
    with pytest.raises(AngelshareError, match=r"GraniteForCausalLM .* linear head alone"):
        let_loss_run_inside(model)


def test_a_head_that_is_no_linear_layer_is_refused() -> None:
    with pytest.raises(AngelshareError, match=r"head is Embedding, not a linear layer"):
        head_parameters(nn.Embedding(3, 2))


def test_checkpointed_activations_give_the_same_gradients() -> None:
    model = olmo().train()
    let_loss_run_inside(model)
    plain = gradients(model, loss_inside)
    model.gradient_checkpointing_enable()
    torch.testing.assert_close(gradients(model, loss_inside), plain, rtol=0, atol=0)


def test_a_compiled_student_has_the_same_gradients_and_one_graph() -> None:
    """Dynamo's part alone: the loss is left out of the graph, and batches compile nothing anew."""
    model = olmo()
    let_loss_run_inside(model)
    plain = gradients(model, loss_inside)
    torch._dynamo.reset()
    counted = CompileCounter()
    compiled = torch.compile(model, backend=counted)
    for _ in range(3):
        model.zero_grad()
        loss_inside(compiled).backward()
        found = {name: p.grad for name, p in model.named_parameters()}
        torch.testing.assert_close(found, plain)
    assert counted.frame_count == 1
