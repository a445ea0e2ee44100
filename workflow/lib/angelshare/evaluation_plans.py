"""What a study is scored on: benchmarks by rule and by a judge, and its teachers' own scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from angelshare.artifact_plans import ArtifactPlanner, once
from angelshare.errors import AngelshareError
from angelshare.evaluation.settings import EvaluationSettings
from angelshare.plans import ArtifactPlan, Judged
from angelshare.published import published
from angelshare.recipes import Recipe


class EvaluationPlanner:
    """Plans what answers and scores models of a configuration."""

    def __init__(self, artifacts: ArtifactPlanner) -> None:
        self.artifacts, self.config = artifacts, artifacts.config
        self.fingerprints = artifacts.fingerprints
        self.known: dict[tuple[Any, ...], Any] = {}

    @once
    def scores(self, dataset: str, teacher: str) -> ArtifactPlan | None:
        """The teacher's scores of what is not cited, if there is any such task; one artifact for
        all datasets unless a task asks one of them."""
        settings = self.config.evaluation.without(self.config.cited_scores(teacher))
        if not settings.tasks:
            return None
        inputs, named = self.artifacts.teacher(teacher)
        own = settings.own_tasks
        return self.artifacts.artifact(
            "scores",
            teacher,
            {**inputs, "dataset": self.artifacts.dataset(dataset)} if own else inputs,
            settings,
            label=f"{teacher} on {dataset}" if own else f"{teacher} on the benchmarks",
            evaluation=self.evaluation(settings),
            **named,
        )

    def evaluation(self, settings: EvaluationSettings) -> Recipe:
        """What decides a score besides the model and the dataset."""
        recipe = settings.identity()
        if settings.task_folder is not None:
            recipe["task_folder"] = {"sha256": self.fingerprints.folder(settings.task_folder)}
        return recipe

    def located(self, name: str) -> tuple[Path, dict[str, Any]]:
        """Where a file lies, and what a recipe says of its content.

        A published file that was not fetched yet is known by its sha256 in the configuration, or
        provisionally by its name. `AngelshareError` where the file is not that one.
        """
        file = published(name)
        if file is None:
            return Path(name), {"sha256": self.fingerprints.file(name)}
        revision, known = self.config.revisions[file.revision_name], self.config.files[name]
        place = file.place(revision)
        if known and place.is_file() and self.fingerprints.file(place) != known:
            raise AngelshareError(
                f"{place} is not the file that was fetched: its sha256 is not the one under files. "
                "Run `angelshare resolve`, which fetches it again"
            )
        return place, {"sha256": known} if known else {"published": name, "revision": revision}

    @once
    def judged(self) -> dict[str, Judged]:
        """The judged benchmarks, with what decides their answers and verdicts."""
        found: dict[str, Judged] = {}
        for named in self.config.evaluation.judged:
            located = {name: self.located(getattr(named, name)) for name in named.files}
            settings = named.model_copy(update={n: str(path) for n, (path, _) in located.items()})
            files = {name: content for name, (_, content) in located.items()}
            asked_from = {name: files[name] for name in settings.asked_from}
            judge = self.config.judges[settings.judge]
            who = judge.identity()
            if judge.endpoint is None:
                del who["revision"]
                who["model"] = self.fingerprints.model(judge.model, judge.revision)
            found[settings.benchmark] = Judged(
                settings=settings,
                answers={"benchmark": settings.identity(), "files": asked_from},
                judgements={
                    "benchmark": settings.benchmark,
                    "limit": settings.limit,
                    "files": files,
                    "judge": who,
                },
            )
        return found

    @once
    def judgements(self, teacher: str) -> dict[str, ArtifactPlan]:
        """The judgements of a teacher's answers, by benchmark; of those that are not cited."""
        inputs, named = self.artifacts.teacher(teacher)
        found, cited = {}, self.config.cited_scores(teacher)
        for name, judged in self.judged().items():
            if name in cited:
                continue
            label = f"{teacher} on {name}"
            answers = self.artifacts.artifact(
                "answers", teacher, inputs, judged.settings, label=label, **judged.answers, **named
            )
            found[name] = self.artifacts.artifact(
                "judgements",
                teacher,
                {"answers": answers},
                judged.settings,
                label=f"{label}, by {judged.settings.judge}",
                **judged.judgements,
            )
        return found
