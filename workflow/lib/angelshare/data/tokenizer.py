"""The demo tokenizer, and what makes two tokenizers the same.

Byte-level BPE trained on the word problems: every digit is a token of its own, merges reach across
words up to the end of a sentence (a prompt takes about 11 tokens), printable ASCII is complete and
other bytes become ``<unk>``. The chat template spends one token to open a turn and one to end an
answer. Distilling logits needs one meaning per token id on both sides, so identity is a digest over
the id-to-token map, the special tokens and the chat template, not over a name.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from angelshare.data.problems import teacher_problems
from angelshare.data.settings import TokenizerSettings, WordProblems
from angelshare.files import publish_bytes

BOS, EOS, PAD, UNK = "<bos>", "<eos>", "<pad>", "<unk>"
TRAINING_PROBLEMS = 4000
MAX_LENGTH = 128
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ('system', 'user', 'assistant') %}"
    "{{ raise_exception('unknown role ' ~ message['role']) }}"
    "{% endif %}"
    "{{ '<|' ~ message['role'] ~ '|>' ~ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, max_length: int
) -> PreTrainedTokenizerFast:
    """A tokenizer of at most ``vocab_size`` tokens; equal texts give equal bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d|[^\d.?]+[.?]?|[.?]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS, UNK, *ROLES],
        initial_alphabet=["Ġ", *(chr(code) for code in range(0x21, 0x7F))],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def problem_tokenizer(
    settings: TokenizerSettings, problems: WordProblems
) -> PreTrainedTokenizerFast:
    """The tokenizer of a study on word problems, trained on none of the study's own problems."""
    sample = teacher_problems(problems, TRAINING_PROBLEMS)
    texts = (text for problem in sample for text in problem)
    return train_tokenizer(texts, settings.vocab_size, MAX_LENGTH)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Publish a tokenizer's files in ``folder``, each by a rename."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        # The chat template stays inside tokenizer_config.json: a store holds no other formats.
        tokenizer.save_pretrained(scratch, save_jinja_files=False)
        for path in sorted(Path(scratch).iterdir()):
            publish_bytes(folder / path.name, path.read_bytes())


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """The hex sha256 over the id-to-token map, the special tokens and the chat template."""
    identity = {
        "tokens": sorted((index, token) for token, index in tokenizer.get_vocab().items()),
        "special": {name: _plain(value) for name, value in tokenizer.special_tokens_map.items()},
        "chat_template": tokenizer.chat_template,
    }
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(b"angelshare tokenizer/v1\n" + canonical.encode()).hexdigest()


def chat_template_digest(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The hex sha256 of the chat template alone; None for a tokenizer without one."""
    template = tokenizer.chat_template
    if template is None:
        return None
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: object) -> object:
    return [str(item) for item in value] if isinstance(value, list) else str(value)
