from __future__ import annotations

import hashlib
import struct

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from angelshare.data.sequences import encode, encode_table, encode_with_places, prompt_ids
from angelshare.data.tables import sequence_table
from angelshare.errors import AngelshareError

WORDS = ["<pad>", "<eos>", "<user>", "<assistant>", "\n", "a", "b", "c", "d", "ab"]
TEMPLATE = (
    "{% for m in messages %}{{ '<' ~ m.role ~ '>' ~ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}"
    "{% if not loop.last %}{{ '\\n' }}{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def letters() -> PreTrainedTokenizerFast:
    """Ids are places in WORDS, so expected sequences can be written down by hand."""
    backend = Tokenizer(models.BPE({word: i for i, word in enumerate(WORDS)}, [("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    backend.add_special_tokens(["<pad>", "<eos>", "<user>", "<assistant>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def turns(*contents: str) -> list[dict[str, str]]:
    return [
        {"role": "user" if index % 2 == 0 else "assistant", "content": content}
        for index, content in enumerate(contents)
    ]


def test_one_turn_pinned_by_hand(letters) -> None:
    encoded = encode(letters, turns("ab", "cd"), 99)
    assert encoded.input_ids == [2, 9, 3, 7, 8, 1]
    assert encoded.targets == [False, False, False, True, True, True]
    digest = hashlib.sha256(struct.pack("<6i", 2, 9, 3, 7, 8, 1) + bytes([0, 0, 0, 1, 1, 1]))
    assert encoded.sha256 == digest.digest()


def test_many_turns_learn_every_answer_and_no_question(letters) -> None:
    encoded = encode(letters, turns("a", "b", "ab", "cc", "d"), 99)
    assert encoded.input_ids == [2, 5, 3, 6, 1, 4, 2, 9, 3, 7, 7, 1, 4, 2, 8]
    assert [i for i, target in enumerate(encoded.targets) if target] == [3, 4, 9, 10, 11]


def test_truncation_cuts_the_right_end(letters) -> None:
    encoded = encode(letters, turns("a", "b", "ab", "cc"), 10)
    assert encoded.input_ids == [2, 5, 3, 6, 1, 4, 2, 9, 3, 7]
    assert [i for i, target in enumerate(encoded.targets) if target] == [3, 4, 9]
    assert encode(letters, turns("a", "b"), 3) is None
    assert encode(letters, turns("a"), 99) is None


def test_a_first_token_is_never_a_target(letters) -> None:
    letters.chat_template = "{{ messages[1].content if messages | length > 1 }}"
    assert encode(letters, turns("a", "cd"), 99).targets == [False, True]


@pytest.mark.parametrize("messages", [[], [{"role": "assistant", "content": "a"}]])
def test_a_conversation_begins_with_a_question(letters, messages) -> None:
    with pytest.raises(AngelshareError, match="begins with a user or system message"):
        encode(letters, messages, 99)


def test_a_template_that_rewrites_history_is_refused(letters) -> None:
    letters.chat_template = "{{ messages | length }}" + TEMPLATE
    with pytest.raises(AngelshareError, match="message 2 of 4 differently"):
        encode(letters, turns("a", "b", "a", "b"), 99)


def test_a_missing_template_says_what_to_add(letters) -> None:
    letters.chat_template = None
    with pytest.raises(AngelshareError, match=r"chat_template\.jinja"):
        encode(letters, turns("a", "b"), 99)


def test_the_template_s_own_refusal_is_told(letters) -> None:
    letters.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(AngelshareError, match="roles must alternate"):
        encode(letters, turns("a", "b"), 99)


def test_tables_keep_their_order_and_name_the_bad_row(letters) -> None:
    def rows(*contents: tuple[str, ...]) -> pa.Table:
        return sequence_table(
            {"id": f"r{i}", "split": "train", "messages": turns(*row)}
            for i, row in enumerate(contents)
        )

    encoded = encode_table(rows(("a", "bb"), ("a",), ("c", "d")), letters, 99)
    assert [(row.id, sum(row.encoded.targets)) for row in encoded] == [("r0", 3), ("r2", 2)]
    letters.chat_template = (
        "{% if messages[0].content == 'c' %}{{ raise_exception('no') }}{% endif %}"
    )
    with pytest.raises(AngelshareError, match="row r1"):
        encode_table(rows(("a",), ("c", "d")), letters, 99)


def test_prompts_end_after_the_last_question(letters) -> None:
    assert prompt_ids(letters, turns("a", "b", "cd", "d")) == [2, 5, 3, 6, 1, 4, 2, 7, 8, 3]
    assert prompt_ids(letters, turns("a")) == [2, 5, 3]
    with pytest.raises(AngelshareError, match="no user message"):
        prompt_ids(letters, [{"role": "assistant", "content": "a"}])


@given(
    st.lists(
        st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E, exclude_characters="<>")),
        min_size=2,
        max_size=6,
    )
)
def test_targets_spell_the_answers(tokenizer, contents: list[str]) -> None:
    messages = turns(*contents)
    encoded = encode(tokenizer, messages, 10_000)
    chosen = [i for i, t in zip(encoded.input_ids, encoded.targets, strict=True) if t]
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    assert tokenizer.decode(chosen) == "".join(answer + "<eos>" for answer in answers)


def places(tokenizer, messages, max_length: int = 99) -> list[tuple[int, int] | None]:
    found = encode_with_places(tokenizer, messages, max_length)
    assert found is not None
    encoded, listed = found
    assert encoded == encode(tokenizer, messages, max_length)
    assert len(listed) == sum(encoded.targets)
    return [None if place is None else tuple(place) for place in listed]


def test_places_count_the_characters_of_each_answer(letters) -> None:
    """Of "abc" the first token is "ab"; what ends a turn stands behind the whole answer."""
    assert places(letters, turns("a", "abc", "b", "d")) == [(0, 0), (0, 2), (0, 3), (1, 0), (1, 1)]
    assert places(letters, turns("a", "abc"), 5) == [(0, 0), (0, 2)]
    assert encode_with_places(letters, turns("a", "abc"), 3) is None


def test_a_template_s_own_tokens_have_no_place(letters) -> None:
    """White space of the template is passed over, its words are nobody's; one token ends a turn."""
    plain = places(letters, turns("a", "cd"))
    letters.chat_template = TEMPLATE.replace("~ m.content", "~ '\\n' ~ m.content")
    assert places(letters, turns("a", "cd")) == [None, *plain]
    letters.chat_template = TEMPLATE.replace("{{ eos_token }}", "{{ '\\n' ~ eos_token }}")
    assert places(letters, turns("a", "cd")) == [*plain, None]
    letters.chat_template = TEMPLATE.replace("~ m.content", "~ 'b\\n' ~ m.content")
    assert places(letters, turns("a", "cd")) == [None, None, *plain]
    letters.chat_template = TEMPLATE.replace("~ m.content", "~ m.content.replace('c', 'b')")
    assert places(letters, turns("a", "cd")) == [None, None, None]


def test_tokens_within_a_character_have_no_place() -> None:
    """Bytes of one character share its offsets; trimmed offsets leave out a word's space."""
    backend = Tokenizer(models.BPE({c: n for n, c in enumerate(bytes_to_unicode().values())}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="!")
    tokenizer.chat_template = TEMPLATE
    found = places(tokenizer, turns("a", "h€ b"))
    assert found == [(0, 0), (0, 1), None, None, (0, 2), (0, 3), (0, 4)]
