"""A small tokenizer of the demo's kind."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from angelshare.data.settings import TokenizerSettings, WordProblems
from angelshare.data.tokenizer import problem_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return problem_tokenizer(TokenizerSettings(), WordProblems())
