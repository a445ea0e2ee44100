"""Keeping a store sound and small: verify, pin, gc, withdraw."""

from __future__ import annotations

from typing import Annotated

import typer

from angelshare.cli.common import (
    CONFIG,
    ConfigOption,
    StoreOption,
    app,
    bill,
    energy,
    find_artifact,
    open_store,
    out,
    read_config,
    size,
)
from angelshare.errors import AngelshareError
from angelshare.store.verify import repair, verify


@app.command("verify")
def verify_command(
    store: StoreOption = None,
    config: ConfigOption = CONFIG,
    repair_: Annotated[
        bool,
        typer.Option("--repair", help="Take away what is damaged; the next run makes it again."),
    ] = False,
) -> None:
    """Check objects against their names, receipts and manifests against recipes, inputs against
    what parts were made from, and energy records against their schema."""
    opened = open_store(store, config)
    with out.status("checking") as status:
        faults = verify(
            opened, lambda done, of: status.update(f"checked {size(done)} of {size(of)}")
        )
    for fault in faults:
        out.print(str(fault), soft_wrap=True, highlight=False)
    if not faults:
        out.print(f"{opened.root}: {sum(1 for _ in opened.artifacts())} artifacts are whole.")
        return
    if not repair_:
        raise AngelshareError(f"{len(faults)} faults. `angelshare verify --repair` mends them.")
    removed = repair(faults)
    out.print(f"Took away {removed} files. Run the workflow: it makes the missing parts again.")


@app.command("pin")
def pin_command(
    key: str,
    reason: Annotated[str, typer.Option(help="Why it must stay.")] = "",
    remove: Annotated[bool, typer.Option("--remove", help="Let it go again.")] = False,
    store: StoreOption = None,
    config: ConfigOption = CONFIG,
) -> None:
    """Keep an artifact whatever the registered configurations reach."""
    from angelshare.store.gc import pin, unpin

    artifact = find_artifact(open_store(store, config), key)
    if remove:
        unpin(artifact)
    else:
        pin(artifact, reason)


@app.command("gc")
def gc_command(
    delete: Annotated[bool, typer.Option("--delete", help="Do it; without, only say.")] = False,
    grace_days: Annotated[float, typer.Option(help="What is younger stays.")] = 14.0,
    forget_team: Annotated[
        str | None,
        typer.Option("--forget", help="First unregister what this team's configurations reach."),
    ] = None,
    store: StoreOption = None,
    config: ConfigOption = CONFIG,
) -> None:
    """Free what no registered configuration reaches. Bills and consumer records stay."""
    from angelshare.store.gc import collect, find_garbage, forget, roots

    opened = open_store(store, config)
    if forget_team is not None:
        out.print(f"Forgot {forget(opened, forget_team)} configurations of {forget_team}.")
    for root in roots(opened).values():
        out.print(
            f"kept for {root.team}: {len(root.artifacts)} artifacts that {root.folder} reached "
            f"on {root.utc[:10]}",
            highlight=False,
            soft_wrap=True,
        )
    garbage = find_garbage(opened, grace_days)
    bills = {str(artifact): bill(artifact).energy_j for artifact in garbage.artifacts}
    for name, cost_j in bills.items():
        out.print(f"{name}: cost {energy(cost_j)}", highlight=False)
    what = f"{size(garbage.bytes)} that cost {energy(sum(bills.values()))} to make"
    if not delete:
        out.print(f"Would free {what}. {garbage.note}".rstrip(), highlight=False)
        if garbage.artifacts or garbage.objects or garbage.temporary:
            out.print("Nothing was deleted; `angelshare gc --delete` does it.")
        return
    done = collect(garbage)
    for text in done.spared:
        out.print(f"left alone: {text}", highlight=False)
    out.print(f"Freed {size(done.bytes)} of {what}. {garbage.note}".rstrip(), highlight=False)


@app.command("withdraw")
def withdraw_command(
    run: Annotated[str, typer.Argument(help="The student run, as `angelshare show` names it.")],
    team: Annotated[
        str | None, typer.Option(help="Whose run; default: the configuration's team.")
    ] = None,
    store: StoreOption = None,
    config: ConfigOption = CONFIG,
) -> None:
    """Take a deleted student run off the bills of what it read; the others' shares rise."""
    from angelshare.store.consumers import withdraw

    owner = team or read_config(config).store.team_id()
    artifacts = withdraw(open_store(store, config).root, run, owner)
    out.print(f"{run} of {owner} is no consumer of {artifacts} artifacts any more.")
