"""What the Snakefile asks of planning: a plan of the jobs it is about to run, shown, kept, refused.

Jobs are matched by rule and wildcards, so a run of one target plans that target alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from angelshare.config import Config
from angelshare.errors import AngelshareError
from angelshare.planning.plan import Plan, make_plan
from angelshare.planning.stored import store_plan
from angelshare.planning.text import block, refusal
from angelshare.planning.work import WorkItem
from angelshare.plans import Study
from angelshare.store.artifacts import ArtifactStore

Jobs = Iterable[tuple[str, Mapping[str, str]]]
"""Rule and wildcards of the jobs of a run."""


def plan_of(
    config: Config, study: Study, store: ArtifactStore, offers: Mapping[str, str], jobs: Jobs
) -> Plan:
    """The plan of these jobs of the study; `offers` are what remotes have, key to address."""
    named = {_identity(rule, wildcards) for rule, wildcards in jobs}
    return make_plan(
        config,
        study,
        store,
        offers=offers,
        wanted=lambda item: _identity(item.rule, _known(item)) in named,
    )


def announce(
    config: Config, study: Study, store: ArtifactStore, offers: Mapping[str, str], jobs: Jobs
) -> list[str]:
    """The lines of a dry run."""
    return block(plan_of(config, study, store, offers, jobs))


def start(
    config: Config, study: Study, store: ArtifactStore, offers: Mapping[str, str], jobs: Jobs
) -> list[str]:
    """The lines of a run that starts, whose plan is then kept.

    Raises:
        AngelshareError: when the plan does not fit into the budget; nothing has run.
    """
    plan = plan_of(config, study, store, offers, jobs)
    if plan.exceeds:
        raise AngelshareError("\n".join([refusal(plan), *block(plan)]))
    store_plan(plan, Path(config.results))
    return block(plan)


def _known(item: WorkItem) -> Mapping[str, str]:
    """The wildcards that the rule's paths have: a part's kind is the rule's own."""
    if "part" in item.wildcards:
        return {name: item.wildcards[name] for name in ("key", "part")}
    return item.wildcards


def _identity(rule: str, wildcards: Mapping[str, str]) -> tuple[str, frozenset[tuple[str, str]]]:
    return rule, frozenset((name, str(value)) for name, value in wildcards.items())
