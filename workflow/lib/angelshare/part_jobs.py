"""A job that makes one part of a shared artifact: lease, journal and commit around its body."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from angelshare.jobs import JobContext, job, planned_artifact
from angelshare.plans import WORK, ArtifactPlan
from angelshare.recipes import digest
from angelshare.store.journal import UNFINISHED, Journal
from angelshare.store.leases import single_flight
from angelshare.store.records import Receipt


class PartJob:
    """A job that makes one part of a shared artifact, unless the store has it already."""

    def __init__(
        self, context: JobContext, plan: ArtifactPlan, part: int, adopted: Receipt | None
    ) -> None:
        self.context = context
        self.plan = plan
        self.part = part
        self.artifact = context.store.artifact(plan.kind, plan.key)
        self.adopted = adopted
        """The part's receipt, where the store has it: there is nothing to do."""
        self._journal: Journal | None = None

    def journal(self) -> Journal:
        """What an earlier attempt at this part finished; what is added to it outlives a kill."""
        if self._journal is None:
            made_from = digest("angelshare/journal", self._inputs())
            folder = self.artifact.folder / UNFINISHED / f"{self.part:05d}"
            self._journal = Journal(folder, made_from, self.context.checks.join)
        return self._journal

    def _inputs(self) -> dict[str, str]:
        """The content digest of each artifact that the part is made from, by its role."""
        context, keys = self.context, self._input_keys()
        for role, plan in self.plan.inputs.items():
            if keys[role] not in context.contents:
                context.open(plan)
        return {role: context.contents[key] for role, key in keys.items()}

    def _input_keys(self) -> dict[str, str]:
        return {role: f"{plan.kind}/{plan.key}" for role, plan in self.plan.inputs.items()}

    def commit(
        self,
        files: Mapping[str, Path],
        *,
        rows: int = 0,
        tokens: int = 0,
    ) -> None:
        """Store what the job made, with what it was made from and with.

        Raises:
            AngelshareError: when something that was read is damaged: nothing is stored.
        """
        context = self.context
        context.checks.join()
        receipt = self.artifact.commit(
            self.part,
            files,
            inputs=self._inputs(),
            input_keys=self._input_keys(),
            rows=rows,
            tokens=tokens,
            provenance=context.making.record(context.config, context.store, self.plan),
        )
        if self._journal is not None:
            self._journal.discard()
        parts = range(self.plan.parts)
        if self.artifact.manifest_path.exists() and all(
            self.artifact.receipt_path(part).exists() for part in parts
        ):
            # A repaired part: what the manifest says of it may have changed.
            self.artifact.seal(self.plan.recipe, self.plan.parts)
        for file in receipt.files:
            path = self.artifact.store.objects.path(file.sha256, file.suffix)
            self.context.window.made(path, file.sha256, file.bytes)

    def sequences(self) -> tuple[Any, float]:
        """This part's rows of the sequences that a teacher reads, and their share of all rows.

        Of a corpus, those with an answer that is learnt from.
        """
        source = self.plan.inputs["sequences"]
        table = self.context.rows(source, self.plan.recipe["splits"])
        rows = self.slice(table)
        share = rows.num_rows / max(1, table.num_rows)
        if source.kind == "corpus":
            rows, _ = self.context.answers(source, rows, self.plan.recipe)
        return rows, share

    def slice(self, table: Any) -> Any:
        """The rows of a table that belong to this part (pyarrow tables slice without a copy)."""
        size = self.plan.recipe["part_rows"]
        start = self.part * size
        length = table.num_rows - start if self.part == self.plan.parts - 1 else size
        return table.slice(start, length)


@contextmanager
def part_job(
    kind: str,
    key: str,
    part: str,
    *,
    receipt: str,
    config: Mapping[str, Any],
    stage: str | None = None,
    **job_settings: Any,
) -> Iterator[PartJob]:
    """Run the body of a job that makes part ``part`` of the artifact ``kind``/``key``.

    The body asks ``adopted`` first: where it is set, there is nothing to do. Otherwise this job
    holds the part's lease while the body runs. Waiting for another job's lease is a phase of the
    window: it costs energy too. ``stage`` is the sidecar's word for the work, where it is not the
    usual one of the kind.
    """
    work = WORK[kind]
    attempts = Path(receipt).parent.parent / "attempts"
    with job(
        stage=stage or work.stage,
        role=work.role,
        config=config,
        attempts=attempts,
        wildcards={"kind": kind, "key": key, "part": part},
        **job_settings,
    ) as context:
        plan, number = planned_artifact(context, key), int(part)
        artifact = context.store.artifact(kind, key)
        with ExitStack() as held:
            lease = single_flight(artifact, number, context.report.say)
            with context.window.phase("wait"):
                adopted = held.enter_context(lease)
            if adopted:
                context.report.say(f"{artifact} part {number} is in the store: reused")
            with context.window.phase("reuse" if adopted else "make"):
                yield PartJob(context, plan, number, adopted)
