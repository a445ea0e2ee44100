"""Keeping a store sound and small: verify, pin, gc, withdraw."""

from __future__ import annotations

from typing import Annotated

import typer

from angelshare.cli.common import (
    CONFIG,
    ConfigOption,
    StoreOption,
    app,
    find_artifact,
    open_store,
    out,
    read_config,
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
    """Check every object against its name, every receipt and manifest against its recipe."""
    opened = open_store(store, config)
    with out.status("checking") as status:
        faults = verify(opened, lambda done, of: status.update(f"checked {done} of {of} artifacts"))
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
    store: StoreOption = None,
    config: ConfigOption = CONFIG,
) -> None:
    """Free what no registered configuration reaches. Bills and consumer records stay."""
    from angelshare.energy.attempts import bill_of, read_attempts
    from angelshare.store.gc import collect, find_garbage

    garbage = find_garbage(open_store(store, config), grace_days)
    cost_j = 0.0
    for artifact in garbage.artifacts:
        bill = bill_of(read_attempts(artifact.attempts))
        cost_j += bill.energy_j
        out.print(f"{artifact}: cost {bill.energy_j:,.1f} J", highlight=False)
    out.print(
        f"{'Frees' if delete else 'Would free'} {garbage.bytes:,} bytes that cost "
        f"{cost_j:,.1f} J ({cost_j / 3.6e6:.3f} kWh) to make. {garbage.note}".rstrip(),
        highlight=False,
    )
    if delete:
        collect(garbage)
    elif garbage.artifacts or garbage.objects or garbage.temporary:
        out.print("Nothing was deleted; `angelshare gc --delete` does it.")


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
