"""The chat template that an evaluation's prompts go through, whichever engine asks them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from angelshare.errors import AngelshareError
from angelshare.evaluation.settings import TaskSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def chat_template(tokenizer: PreTrainedTokenizerBase, task: TaskSettings) -> str | None:
    """The template of a resolved task's prompts; None where they go through none.

    `AngelshareError` where the tokenizer has none to go through.
    """
    if not task.chat_template:
        return None
    if not tokenizer.chat_template:
        raise AngelshareError(
            "the model's tokenizer has no chat template: set evaluation.chat_template: false, or "
            "let the student read with its teacher's tokenizer (students.<name>.tokenizer_of)"
        )
    return str(tokenizer.chat_template)


def template_digest(template: str | None) -> str | None:
    """What a score says of a template."""
    return hashlib.sha256(template.encode()).hexdigest() if template else None
