"""A small tokenizer of the demo's kind."""

from __future__ import annotations

import pytest
from angelshare.data.problems import teacher_problems
from angelshare.data.settings import WordProblems
from angelshare.data.tokenizer import train_tokenizer
from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    texts = [text for problem in teacher_problems(WordProblems(), 300) for text in problem]
    return train_tokenizer(texts, vocab_size=256, max_length=128)
