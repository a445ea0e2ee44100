"""Where each artifact of a study comes from: the store, a remote, or a job that makes it.

An artifact that is there, or is fetched, needs none of its inputs any more. One that nobody reads
and that nothing has to be made from is not made at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from angelshare.errors import AngelshareError
from angelshare.plans import ArtifactPlan, Study
from angelshare.store.artifacts import ArtifactStore
from angelshare.store.offers import Answer, ask

Source = Literal["store", "remote", "made", "not needed"]


def sources(study: Study, store: ArtifactStore, offers: Mapping[str, str]) -> dict[str, Source]:
    """Where each artifact comes from, by key.

    Args:
        offers: key -> remote, of what is to be fetched where it is needed, whether or not it has
            arrived meanwhile.
    """
    here = {key for key, plan in study.artifacts.items() if _sealed(store, plan)}
    needed = study.needed({*here, *offers})

    def source(plan: ArtifactPlan) -> Source:
        if plan.key in offers and plan.key in needed:
            return "remote"
        if plan.key in here:
            return "store"
        return "made" if plan.key in needed or _complete(store, plan) else "not needed"

    return {key: source(plan) for key, plan in study.artifacts.items()}


def offers_for(study: Study, store: ArtifactStore, remotes: list[str]) -> Answer:
    """What the remotes offer of what this study needs and the store lacks."""
    lacking = [
        (plan.kind, plan.key) for plan in study.artifacts.values() if not _sealed(store, plan)
    ]
    answer = ask(remotes, lacking)
    chosen = sources(study, store, answer.offers)
    answer.offers = {k: url for k, url in answer.offers.items() if chosen[k] == "remote"}
    return answer


def fetch(store: ArtifactStore, plan: ArtifactPlan, url: str, say: Callable[[str], None]) -> None:
    """Fetch an artifact, and the records of what its inputs cost.

    Raises:
        AngelshareError: when the remote has not got it any more, or it is damaged.
    """
    # Imported here: every job that parses the workflow imports this module.
    from angelshare.store.remote import Remote
    from angelshare.store.transfer import pull

    upstream = [(one.kind, one.key) for one in plan.closure() if one is not plan]
    try:
        pull(store, Remote(url), plan.kind, plan.key, say, upstream)
    except AngelshareError as error:
        raise AngelshareError(
            f"{error}\nRun the workflow again: it goes on with what is missing, and what no remote "
            f"offers any more is made here. To make it now, take {url} out of store.remotes."
        ) from error


def _sealed(store: ArtifactStore, plan: ArtifactPlan) -> bool:
    return store.artifact(plan.kind, plan.key).manifest_path.exists()


def _complete(store: ArtifactStore, plan: ArtifactPlan) -> bool:
    """Whether all parts are there: sealing them again costs nothing."""
    artifact = store.artifact(plan.kind, plan.key)
    return all(artifact.receipt_path(part).exists() for part in range(plan.parts))
