"""What a configuration's models alone do not tell: names that refer to nothing, paths that cannot
be used, more GPUs than a job has; and errors in the configuration's own words.
"""

from __future__ import annotations

import difflib
import getpass
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from angelshare.errors import AngelshareError
from angelshare.published import published
from angelshare.revisions import is_local
from angelshare.settings import Settings
from angelshare.student.settings import ScratchStudent, TrainingSettings
from angelshare.teacher.settings import AssistantTeacher, EmbeddedTeacher, PretrainedTeacher

if TYPE_CHECKING:
    from angelshare.config import Config, GridBlock, RuleName, Student


def explain(problem: Any, config: type[BaseModel], values: Any, at: str = "") -> str:
    """One line for one pydantic error, in the words of the configuration of model ``config``.

    ``values`` is what was checked, ``at`` the place of it in the configuration, if it is not all.
    """
    keys = _keys(problem, values)
    path = _dotted(at, keys)
    see = f"See config/README.md#{at.rpartition('.')[2] or keys[0]}."
    context = problem.get("ctx", {})
    match problem["type"]:
        case "extra_forbidden":
            near = difflib.get_close_matches(str(keys[-1]), _known_keys(config), n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            return f"{path} is not a known key{hint}. {see}"
        case "missing":
            return f"{path} is missing. {see}"
        case "union_tag_not_found":
            return f"{path}.{context['discriminator'].strip(chr(39))} is missing. {see}"
        case "union_tag_invalid":
            field = context["discriminator"].strip("'")
            path, got = f"{path}.{field}", context["tag"]
            text = f"one of {context['expected_tags']}"
        case "dict_type" | "model_type":
            text, got = "a section of its own, `key: value`", problem["input"]
        case _:
            text = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
            got = problem["input"]
    return f"{path} must be {text} (got {got!r}). {see}"


def _keys(problem: Any, values: Any) -> list[str | int]:
    """The keys and numbers that lead to a problem in ``values``.

    What pydantic names besides, the alternatives that it tried, stands in no file.
    """
    found: list[str | int] = []
    for part in problem["loc"]:
        listed = isinstance(values, list | tuple) and isinstance(part, int)
        if listed or (isinstance(values, Mapping) and part in values):
            values = values[part]
            found.append(part)
    return [*found, problem["loc"][-1]] if problem["type"] == "missing" else found


def _dotted(at: str, keys: Iterable[str | int]) -> str:
    """A place as the user finds it: ``grid[0].training.max_steps``."""
    path = at + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return path.removeprefix(".")


def _known_keys(config: type[BaseModel]) -> list[str]:
    """Every key of every section, for suggestions."""
    found: set[str] = set()
    todo: list[Any] = [config]
    seen: set[Any] = set()
    while todo:
        item = todo.pop()
        if item in seen:
            continue
        seen.add(item)
        if isinstance(item, type) and issubclass(item, BaseModel):
            found.update(item.model_fields)
            todo.extend(field.annotation for field in item.model_fields.values())
        else:
            todo.extend(arg for arg in getattr(item, "__args__", ()) if arg.__hash__)
    return sorted(found)


def dangling_names(config: Config) -> Iterator[str]:
    """Names in the grid and in teachers that refer to nothing."""
    for where, block in config.blocks():
        known: list[tuple[str, Iterable[str], Mapping[str, Any]]] = [
            ("pipeline", [block.pipeline], config.pipelines),
            ("students", block.students, config.students),
            ("datasets", block.datasets, config.datasets),
            ("teacher", [block.teacher] if block.teacher else [], config.teachers),
            ("teachers", block.teachers, config.teachers),
            ("routes", block.routes, config.datasets),
            ("routes", block.routes.values(), config.teachers),
        ]
        for field, names, table in known:
            for name in names:
                if name not in table:
                    own = field if where.startswith("grid") else field.removesuffix("s")
                    yield _unknown(f"{where}.{own}", name, table)
        pipeline = config.pipelines.get(block.pipeline)
        if pipeline and not block.taught_by and pipeline.reads_teacher:
            yield f"{where}.teacher is missing: pipeline {block.pipeline!r} learns from it."
        if pipeline and not pipeline.logits and block.teachers:
            yield (
                f"{where}.teachers mixes their distributions, which pipeline {block.pipeline!r} "
                "does not read (logits: false): name one teacher."
            )
        if pipeline and (pipeline.states or pipeline.on_policy) and block.routes:
            what = "hidden states" if pipeline.states else "a teacher in memory"
            yield (
                f"{where}.routes: pipeline {block.pipeline!r} reads {what}, which one run has of "
                "one dataset: name datasets and a teacher."
            )
        if pipeline and not pipeline.divergence and (block.temperature or block.alpha):
            yield (
                f"{where}: temperature and alpha belong to the distillation loss, which pipeline "
                f"{block.pipeline!r} does not use (logits: false)."
            )
        reads_answers = block.max_new_tokens or block.generation or block.answers
        if pipeline and pipeline.data != "corpus" and reads_answers:
            yield (
                f"{where}: max_new_tokens, generation and answers belong to the teacher's answers, "
                f"which pipeline {block.pipeline!r} does not read (data: dataset)."
            )
        of_block: dict[str, Callable[[GridBlock], Settings]] = {
            "training": config.training_of,
            "generation": config.generation_of,
            "answers": config.answers_of,
        }
        for section, settings_of in of_block.items():
            changes, place = getattr(block, section), f"{where}.{section}"
            try:
                settings = settings_of(block)
            except ValidationError as error:
                for problem in error.errors():
                    yield explain(problem, type(config), changes, place)
            else:
                if isinstance(settings, TrainingSettings):
                    yield from _uneven_shares(config, block, settings)
    for name, teacher in config.teachers.items():
        if isinstance(teacher, EmbeddedTeacher):
            yield from _generated(config, f"teachers.{name}.dataset", teacher.dataset)
            if teacher.tokenizer not in config.tokenizers:
                yield _unknown(f"teachers.{name}.tokenizer", teacher.tokenizer, config.tokenizers)
    for name, pipeline in config.pipelines.items():
        try:
            config.loss_of(name)
        except ValidationError as error:
            for problem in error.errors():
                yield explain(problem, type(config), pipeline.loss, f"pipelines.{name}.loss")
    yield from _endless_chains(config)
    for name, tokenizer in config.tokenizers.items():
        yield from _generated(config, f"tokenizers.{name}.dataset", tokenizer.dataset)
    for name, student in config.students.items():
        if student.tokenizer is not None and student.tokenizer not in config.tokenizers:
            yield _unknown(f"students.{name}.tokenizer", student.tokenizer, config.tokenizers)
        yield from _borrowed_tokenizer(config, f"students.{name}.tokenizer_of", student)


def unusable_judges(config: Config) -> Iterator[str]:
    """Judged benchmarks without their judge or a file, published scores that nothing reads."""
    for one in config.evaluation.judged:
        where = f"evaluation.judged.{one.benchmark}"
        if one.judge not in config.judges:
            yield _unknown(f"{where}.judge", one.judge, config.judges)
        elif one.reads_logprobs and not config.judges[one.judge].endpoint:
            yield (
                f"{where}.judge: it reads log-probabilities, which {one.judge!r} gives through an "
                "endpoint only: serve the model (vllm serve) and name the server as its endpoint."
            )
        if not one.has_package:
            yield f"{where}: it needs a package in this release: pip install {one.needs}."
        for field in one.files:
            path = getattr(one, field)
            if published(path) is None and not Path(path).is_file():
                yield (
                    f"{where}.{field}: there is no file {path!r}. Name one, or one that a "
                    "repository publishes: hub:OWNER/DATASET/PATH or github:OWNER/REPOSITORY/PATH."
                )
    asked = dict.fromkeys(config.evaluation.names)
    for teacher in config.teachers:
        for task in config.cited_scores(teacher):
            if task not in asked:
                yield _unknown(f"teachers.{teacher}.scores", task, asked)


def _endless_chains(config: Config) -> Iterator[str]:
    """Assistants that are their own teachers, directly or through others."""
    for name in config.teachers:
        chain = [name]
        while isinstance(one := config.teachers.get(chain[-1]), AssistantTeacher) and one.teacher:
            chain.append(one.teacher)
            if one.teacher in chain[:-1]:
                break
        if len(chain) > 1 and chain[-1] == name:
            yield (
                f"teachers.{name}.teacher: {' learns from '.join(map(repr, chain))}. A chain must "
                "begin with a teacher that learns from none of its own."
            )


def _borrowed_tokenizer(config: Config, where: str, student: Student) -> Iterator[str]:
    """A tokenizer can only be lent by a pretrained teacher to a pretrained student."""
    if student.tokenizer_of is None:
        return
    if student.tokenizer_of not in config.teachers:
        yield _unknown(where, student.tokenizer_of, config.teachers)
    elif not isinstance(config.teachers[student.tokenizer_of], PretrainedTeacher):
        yield f"{where}: {student.tokenizer_of!r} is made here; name its entry of tokenizers."
    elif isinstance(student.init, ScratchStudent):
        yield f"{where}: a student from scratch needs an entry of tokenizers instead."


def unquantised_engines(config: Config) -> Iterator[str]:
    """Students to be scored quantised where something else than transformers runs them."""
    for name, student in config.students.items():
        if not student.quantised:
            continue
        if config.evaluation.engines != ["transformers"]:
            yield (
                f"students.{name}.quantised needs evaluation.engine transformers (got "
                f"{', '.join(config.evaluation.engines)}): both precisions must be run alike."
            )
        if config.evaluation.judged:
            yield (
                f"students.{name}.quantised: answers to judged benchmarks are not generated in "
                "that precision. Take evaluation.judged out, or the precision."
            )


def _uneven_shares(config: Config, block: GridBlock, training: TrainingSettings) -> Iterator[str]:
    """Students whose processes cannot share an optimizer step."""
    for name in block.students:
        if name in config.students:
            processes = config.training_processes(name) * config.students[name].nodes
            if config.students[name].lora and processes > 1:
                yield (
                    f"students.{name}.lora is trained by one process, not {processes}: set its "
                    "gpus to 1 (or 0) and nodes to 1, or train all of its weights."
                )
            try:
                training.divided(processes)
            except AngelshareError as error:
                yield f"students.{name}: {error}."


def _generated(config: Config, where: str, dataset: str) -> Iterator[str]:
    """The dataset must be one of generated problems: only those have more rows to train on."""
    if dataset not in config.datasets:
        yield _unknown(where, dataset, config.datasets)
    elif config.datasets[dataset].source != "word_problems":
        yield f"{where}: {dataset!r} is not a dataset of generated word_problems."


def too_few_gpus(config: Config) -> Iterator[str]:
    """A model cannot be spread over more GPUs than its job has."""
    spread: dict[RuleName, tuple[str, int]] = {
        "capture_logits": ("capture", config.capture.tensor_parallel)
    }
    if config.generation.backend == "vllm":
        spread["generate_corpus"] = ("generation", config.generation.tensor_parallel)
    for rule, (section, asked) in spread.items():
        given = config.resources_of(rule).gpus or 0
        if asked > max(1, given):
            yield (
                f"{section}.tensor_parallel is {asked}, a job of {rule} has {given} GPUs: raise "
                f"hardware.gpus or hardware.rules.{rule}.gpus."
            )


def _unknown(where: str, name: str, table: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, table, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{where}: there is no {name!r}; known are {', '.join(sorted(table))}.{hint}"


def unusable_paths(config: Config) -> Iterator[str]:
    """Files that are named and not there, folders that cannot be written."""
    for section, sources in (("datasets", config.datasets), ("benchmarks", config.benchmarks)):
        for name, source in sources.items():
            if source.source == "file" and not Path(source.path).is_file():
                yield f"{section}.{name}.path: there is no file {source.path!r}."
    models: dict[str, Settings] = {}
    models |= {f"teachers.{name}": teacher for name, teacher in config.teachers.items()}
    models |= {f"students.{name}.init": student.init for name, student in config.students.items()}
    for where, entry in models.items():
        model = getattr(entry, "model", None)
        if model and is_local(model) and not (Path(model).expanduser() / "config.json").is_file():
            yield f"{where}.model: {model} has no config.json; it must be a saved model's folder."
    tasks = config.evaluation.task_folder
    if tasks is not None and not Path(tasks).is_dir():
        yield f"evaluation.task_folder: there is no folder {tasks!r}."
    for number, layer in enumerate(config.store.layers):
        if not Path(layer).is_dir():
            yield f"store.layers[{number}]: there is no store at {layer}."
    for number, url in enumerate(config.store.remotes):
        yield from _unknown_protocol(f"store.remotes[{number}]", url)
    for where, folder in (("store.root", config.store.root), ("results", config.results)):
        nearest = Path(folder).absolute()
        while not nearest.exists():
            nearest = nearest.parent
        if not nearest.is_dir():
            yield f"{where}: {nearest} is a file, not a folder."
        elif not os.access(nearest, os.W_OK):
            yield f"{where}: {nearest} is not writable for {getpass.getuser()}."


def _unknown_protocol(where: str, url: str) -> Iterator[str]:
    """An address of a kind for which there is no file system."""
    from fsspec import available_protocols
    from fsspec.utils import get_protocol

    protocol = get_protocol(url)
    if protocol not in available_protocols():
        yield f"{where}: fsspec knows no file system for {protocol}:// (got {url!r})."
