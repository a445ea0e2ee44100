"""Memory by calculation: parameter counts against transformers, bytes against the real thing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from angelshare.student.memory import (
    SHAPES,
    DecoderShape,
    inference_memory,
    layer_activations,
    training_memory,
)
from angelshare.student.optimizers import make_optimizer
from angelshare.student.settings import OptimizerSettings

FAMILIES = {
    "OLMo-2": (Olmo2Config, Olmo2ForCausalLM),
    "Llama-3.1": (LlamaConfig, LlamaForCausalLM),
    "Qwen2.5": (Qwen2Config, Qwen2ForCausalLM),
}
H100 = 80 * 10**9


def model_of(name: str, shape: DecoderShape) -> torch.nn.Module:
    """The architecture without memory for its weights."""
    config_type, model_type = FAMILIES[name.split()[0]]
    config = config_type(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        intermediate_size=shape.intermediate,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied,
    )
    with torch.device("meta"):
        return model_type(config)


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_are_those_of_the_architecture(name: str) -> None:
    assert SHAPES[name].parameters == sum(
        p.numel() for p in model_of(name, SHAPES[name]).parameters()
    )


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("OLMo-2 1B", 1.48),
        ("OLMo-2 7B", 7.30),
        ("OLMo-2 13B", 13.72),
        ("OLMo-2 32B", 32.23),
        ("Llama-3.1 8B", 8.03),
        ("Llama-3.1 70B", 70.55),
        ("Qwen2.5 7B", 7.62),
        ("Qwen2.5 72B", 72.71),
    ],
)
def test_parameters_as_published(name: str, billions: float) -> None:
    assert SHAPES[name].parameters / 1e9 == pytest.approx(billions, abs=0.01)


TINY = DecoderShape(
    hidden=64, layers=2, heads=4, key_value_heads=2, intermediate=96, vocabulary=320
)


@pytest.mark.parametrize("name", ["adafactor", "adamw"])
@pytest.mark.parametrize("precision", ["auto", "bfloat16"])
def test_optimizer_state_is_what_the_optimizer_holds(name: str, precision: str) -> None:
    config = LlamaConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        vocab_size=320,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).to(torch.float32 if precision == "auto" else torch.bfloat16)
    optimizer = make_optimizer(model, OptimizerSettings(name=name))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    held = sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for key, value in state.items()
        if isinstance(value, torch.Tensor) and key != "step"
    )
    memory = training_memory(TINY, precision=precision, batch_size=1, length=1, optimizer=name)
    working = 4 * 320 * 64 * (2 if precision == "auto" else 3) if name == "adafactor" else 0
    # Adafactor keeps one scalar more per parameter.
    assert memory.optimizer - working == pytest.approx(held, abs=8 * len(list(model.parameters())))


def test_a_layer_keeps_about_what_autograd_saves() -> None:
    """Every tensor that autograd saved of a bfloat16 layer, each storage once, weights left out."""
    config = LlamaConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        vocab_size=320,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    layer = model.model.layers[0]
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    tokens = 4 * 128
    hidden = torch.randn(4, 128, 64, dtype=torch.bfloat16, requires_grad=True)
    rotary = model.model.rotary_emb(hidden, torch.arange(128)[None])
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = layer(hidden, position_embeddings=rotary)
    found = sum(saved.values()) / tokens
    assert output is not None
    assert layer_activations(TINY) == pytest.approx(found, rel=0.35)


def paper(name: str, precision: str) -> float:
    return training_memory(SHAPES[name], precision=precision, batch_size=4, length=1024).total


def test_13b_fits_one_h100_with_bfloat16_weights_only() -> None:
    assert paper("OLMo-2 13B", "bfloat16") < 0.9 * H100
    assert paper("OLMo-2 13B", "auto") > 1.5 * H100
    assert paper("OLMo-2 1B", "auto") < 0.3 * H100
    assert paper("OLMo-2 7B", "bfloat16") < 0.5 * H100
    adamw = training_memory(
        SHAPES["OLMo-2 13B"], precision="bfloat16", batch_size=4, length=1024, optimizer="adamw"
    )
    assert adamw.total > H100
    plain = training_memory(
        SHAPES["OLMo-2 13B"], precision="bfloat16", batch_size=4, length=1024, checkpointing=False
    )
    assert plain.total > H100


def test_which_teacher_fits_where() -> None:
    def teacher(name: str) -> float:
        return inference_memory(SHAPES[name], sequences=16, length=1536).total

    assert teacher("OLMo-2 32B") < 0.95 * H100
    for name in ("Llama-3.1 70B", "Qwen2.5 72B"):
        assert 1.8 * H100 < teacher(name) < 4 * 0.6 * H100


def test_the_key_value_cache_by_hand() -> None:
    """OLMo-2 32B: keys and values of 64 layers, 8 heads of 128, two bytes each."""
    memory = inference_memory(SHAPES["OLMo-2 32B"], sequences=1, length=1)
    assert memory.activations == 2 * 64 * 8 * 128 * 2


def test_the_page_s_table_is_what_the_functions_say() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs/models.md").read_text()
    rows = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] in SHAPES:
            rows[cells[0]] = cells[1:]
    assert set(rows) == set(SHAPES)
    for name, cells in rows.items():
        shape, size = SHAPES[name], 10**9
        students = [
            round(training_memory(shape, precision=p, batch_size=4, length=1024).total / size)
            for p in ("auto", "bfloat16")
        ]
        teacher = inference_memory(shape, sequences=32, length=1536)
        expected = [f"{shape.parameters / size:.2f}", *map(str, students)]
        expected += [str(round(teacher.weights / size)), str(round(teacher.total / size))]
        assert cells == expected, name
