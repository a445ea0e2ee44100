"""A judge that runs here, by transformers or vLLM: its energy is the job's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from angelshare.data.sequences import prompt_ids
from angelshare.errors import AngelshareError
from angelshare.evaluation.judges.asking import TOO_LONG, Question, Reply
from angelshare.evaluation.judges.settings import JudgeSettings
from angelshare.teacher.generate import back_end
from angelshare.teacher.models import load_config, load_tokenizer
from angelshare.teacher.prompts import Completion, Prompt
from angelshare.teacher.settings import DecodingSettings


class LocalJudge:
    """See the module; the model is loaded with the first questions."""

    def __init__(self, name: str, settings: JudgeSettings) -> None:
        """``AngelshareError`` where the model has no tokenizer with a chat template."""
        self._settings = settings
        self._tokenizer = load_tokenizer(settings.model, revision=settings.revision)
        if not self._tokenizer.chat_template:
            raise AngelshareError(
                f"judges.{name}.model: {settings.model} has no chat template: name a chat model"
            )

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[Question, Reply]]:
        """Replies, a batch at a time."""
        settings = self._settings
        longest = max(question.max_tokens or settings.max_tokens for question in questions)
        config = load_config(settings.model, revision=settings.revision)
        room: int = config.max_position_embeddings
        asked: dict[str, Question] = {}
        prompts: dict[str, Prompt] = {}
        for question in questions:
            ids = prompt_ids(self._tokenizer, question.messages)
            if len(ids) + longest > room:
                yield question, Reply(missing=TOO_LONG)
            else:
                asked[question.id] = question
                prompts[question.id] = Prompt(id=question.id, token_ids=ids)
        if not prompts:
            return
        decoding = DecodingSettings(
            backend=settings.backend,
            max_new_tokens=longest,
            temperature=settings.temperature,
            batch_size=settings.batch_size,
        )
        generator = back_end(decoding)(
            settings.model, self._tokenizer, decoding, revision=settings.revision
        )
        for some in generator.generate(list(prompts.values())):
            for completion in some:
                reply = self._reply(completion, len(prompts[completion.id].token_ids))
                yield asked[completion.id], reply

    def _reply(self, completion: Completion, prompt_tokens: int) -> Reply:
        text = self._tokenizer.decode(completion.token_ids, skip_special_tokens=True)
        return Reply(
            text=str(text),
            model=self._settings.model,
            prompt_tokens=prompt_tokens,
            generated_tokens=len(completion.token_ids),
        )
