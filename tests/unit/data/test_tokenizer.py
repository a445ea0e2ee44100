from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from angelshare.data.problems import teacher_problems
from angelshare.data.settings import TokenizerSettings, WordProblems
from angelshare.data.tokenizer import problem_tokenizer, save_tokenizer, tokenizer_digest


def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path) -> None:
    save_tokenizer(tokenizer, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer_digest(loaded) == tokenizer_digest(tokenizer)
    question = teacher_problems(WordProblems(), 1)[0].question
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": "1+1=2;#2"}]
    assert loaded.apply_chat_template(messages) == tokenizer.apply_chat_template(messages)


def test_training_is_deterministic(tokenizer, tmp_path) -> None:
    again = problem_tokenizer(TokenizerSettings(), WordProblems())
    save_tokenizer(tokenizer, tmp_path / "a")
    save_tokenizer(again, tmp_path / "b")
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_digits_stand_alone_and_prompts_are_short(tokenizer) -> None:
    assert tokenizer.tokenize("12+7=19;#19") == ["1", "2", "+", "7", "=", "1", "9", ";#", "1", "9"]
    for problem in teacher_problems(WordProblems(seed=1), 50):
        assert len(tokenizer(problem.question)["input_ids"]) <= 20


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E)))
def test_printable_ascii_survives(tokenizer, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("change", ["token", "special", "template"])
def test_the_digest_sees_every_part(tokenizer, tmp_path, change: str) -> None:
    save_tokenizer(tokenizer, tmp_path)
    other = AutoTokenizer.from_pretrained(tmp_path)
    if change == "token":
        other.add_tokens(["extra"])
    elif change == "special":
        other.eos_token = "<bos>"
    else:
        other.chat_template += " "
    assert tokenizer_digest(other) != tokenizer_digest(tokenizer)


def test_the_template_refuses_unknown_roles(tokenizer) -> None:
    with pytest.raises(Exception, match="unknown role critic"):
        tokenizer.apply_chat_template([{"role": "critic", "content": "no"}])


def test_the_meaning_of_the_default_is_pinned(tokenizer) -> None:
    """A change here changes what existing artifacts mean: raise the tokenizer stage's version."""
    assert len(tokenizer) == 254
    assert tokenizer_digest(tokenizer) == (
        "7f167373581fed976993df643a86362c9d99a039a2784a07258427c85ca14671"
    )
