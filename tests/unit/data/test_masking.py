"""Which tokens are learnt, on multi-turn rows under the chat templates that models really use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from angelshare.data.sequences import encode

ROWS = Path(__file__).resolve().parents[2] / "data/hub/tulu_3_sft_mixture.jsonl"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' "
    "+ message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TEMPLATES = {
    # The Tülu 3 template of the OLMo-2 SFT models: the end token only ends an answer.
    "olmo2": (
        "{{ bos_token }}{% for message in messages %}"
        "{% if message['role'] == 'system' %}{{ '<|system|>\\n' + message['content'] + '\\n' }}"
        "{% elif message['role'] == 'user' %}{{ '<|user|>\\n' + message['content'] + '\\n' }}"
        "{% elif message['role'] == 'assistant' %}{% if not loop.last %}"
        "{{ '<|assistant|>\\n' + message['content'] + eos_token + '\\n' }}{% else %}"
        "{{ '<|assistant|>\\n' + message['content'] + eos_token }}{% endif %}{% endif %}"
        "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
        "{% endfor %}",
        "<|endoftext|>",
    ),
    "chatml": (CHATML, "<|im_end|>\n"),
    # Qwen2.5 puts a system message of its own where there is none.
    "qwen2.5": (
        "{% if messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
        + CHATML,
        "<|im_end|>\n",
    ),
    # Llama 3 trims what it is given and opens every turn with a header.
    "llama3": (
        "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] "
        "+ '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' %}"
        "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
        "{{ content }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
        "<|eot_id|>",
    ),
}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|user|>"]
SPECIAL += ["<|assistant|>", "<|system|>", "<|start_header_id|>", "<|end_header_id|>"]


@pytest.fixture(params=TEMPLATES)
def templated(request) -> tuple[PreTrainedTokenizerFast, str]:
    """A byte tokenizer with that template, and what the template puts after an answer."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.chat_template, end = TEMPLATES[request.param]
    return tokenizer, end


def usable() -> list[dict]:
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    return [row for row in rows if row["id"] in {f"sample_hand_{n}" for n in (1, 2, 3, 4, 9)}]


@pytest.mark.parametrize("row", usable(), ids=lambda row: row["id"])
def test_targets_spell_every_answer_and_nothing_of_the_user(templated, row) -> None:
    tokenizer, end = templated
    encoded = encode(tokenizer, row["messages"], 10_000)
    chosen = [i for i, target in zip(encoded.input_ids, encoded.targets, strict=True) if target]
    answers = [m["content"] + end for m in row["messages"] if m["role"] == "assistant"]
    assert tokenizer.decode(chosen) == "".join(answers)
    rest = [i for i, target in zip(encoded.input_ids, encoded.targets, strict=True) if not target]
    for message in row["messages"]:
        if message["role"] == "user":
            assert message["content"].strip() in tokenizer.decode(rest)


def test_an_over_long_prompt_drops_the_row_and_a_long_answer_is_cut(templated) -> None:
    tokenizer, _ = templated
    (long,) = (row for row in usable() if row["id"] == "sample_hand_9")
    whole = encode(tokenizer, long["messages"], 10_000)
    prompt = whole.targets.index(True)
    assert prompt > 2_000
    assert encode(tokenizer, long["messages"], prompt) is None
    cut = encode(tokenizer, long["messages"], prompt + 5)
    assert cut.input_ids == whole.input_ids[: prompt + 5]
    assert cut.targets == [False] * prompt + [True] * 5


def test_a_cut_inside_a_later_question_leaves_no_label_behind_it(templated) -> None:
    tokenizer, _ = templated
    (turns,) = (row for row in usable() if row["id"] == "sample_hand_2")
    whole = encode(tokenizer, turns["messages"], 10_000)
    first_end = next(i for i, t in enumerate(whole.targets) if t and not whole.targets[i + 1])
    cut = encode(tokenizer, turns["messages"], first_end + 10)
    assert cut.targets[: first_end + 1] == whole.targets[: first_end + 1]
    assert not any(cut.targets[first_end + 1 :])
