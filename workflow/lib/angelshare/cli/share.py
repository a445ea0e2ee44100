"""Sharing a store: push, pull, catalogue."""

from __future__ import annotations

from pathlib import Path
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

UrlArgument = Annotated[str, typer.Argument(help="A folder, or any fsspec address (s3://…).")]


@app.command("push")
def push_command(
    url: UrlArgument,
    keys: Annotated[list[str], typer.Argument(help="Artifacts; their inputs are not sent.")],
    store: StoreOption = None,
    config: ConfigOption = CONFIG,
) -> None:
    """Publish artifacts, with their receipts and measured joules, to another store."""
    from angelshare.store.transfer import Remote, push

    opened, remote = open_store(store, config), Remote(url)
    for key in keys:
        artifact = find_artifact(opened, key)
        done = push(artifact, remote, out.print)
        out.print(f"{artifact}: sent {done.objects} objects, {done.skipped} were there already")


@app.command("pull")
def pull_command(
    url: UrlArgument,
    keys: Annotated[
        list[str] | None, typer.Argument(help="Whole keys; default: what the study needs.")
    ] = None,
    config: ConfigOption = CONFIG,
) -> None:
    """Fetch what this configuration's study needs, where another store has it."""
    from angelshare.grid import plan_study
    from angelshare.store.transfer import Remote, pull

    checked, remote = read_config(config), Remote(url)
    store = checked.store.open()
    for plan in plan_study(checked).artifacts.values():
        wanted = plan.key in keys if keys else True
        here = store.artifact(plan.kind, plan.key).manifest_path.exists()
        if wanted and not here and remote.manifest(plan.kind, plan.key):
            done = pull(store, remote, plan.kind, plan.key, out.print)
            out.print(f"{plan.kind} {plan.label}: fetched {done.bytes:,} bytes")


@app.command("catalogue")
def catalogue_command(
    folder: Annotated[Path, typer.Option("--out", help="Folder for the two files.")] = Path(),
    store: StoreOption = None,
    config: ConfigOption = CONFIG,
) -> None:
    """Write catalogue.json and catalogue.html: what a store offers and what it cost."""
    from angelshare.store.catalogue import write_catalogue

    for path in write_catalogue(open_store(store, config), folder):
        out.print(f"wrote {path}", highlight=False, soft_wrap=True)
