"""A low-rank update of a student's weights, trained by peft and merged before publication.

The update of a matrix W is alpha / rank · B A. A starts from the seed and B at zero, so the student
starts as the model that it was made from. Checkpoints hold A and B alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, set_seed

from angelshare.errors import AngelshareError
from angelshare.student.settings import LoraSettings


def with_lora(model: PreTrainedModel, settings: LoraSettings, seed: int) -> Any:
    """``model`` with an update of its layers that is trained instead of its weights.

    Raises ``AngelshareError`` where it has no such layers, and for a head whose weights are the
    embedding's too: merged, an update of the one would change the other.
    """
    set_seed(seed)
    configuration = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules=settings.target_modules,
        task_type="CAUSAL_LM",
    )
    try:
        updated = get_peft_model(model, configuration)
    except ValueError as error:
        first_line = str(error).split("\n", 1)[0]
        raise AngelshareError(f"lora.target_modules: {first_line}") from error
    head = updated.get_output_embeddings()
    if hasattr(head, "lora_A") and model.config.tie_word_embeddings:
        raise AngelshareError(
            "lora.target_modules names the head, whose weights are the embedding's too in this "
            "model: leave it out"
        )
    return updated


def merged(model: PreTrainedModel, checkpoint: Path) -> PreTrainedModel:
    """``model`` with the update of a checkpoint added to its weights."""
    updated: Any = PeftModel.from_pretrained(model, str(checkpoint))
    plain: PreTrainedModel = updated.merge_and_unload(safe_merge=True)
    return plain.eval()
