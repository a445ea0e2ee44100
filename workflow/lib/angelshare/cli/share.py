"""Sharing a store: push, pull, catalogue."""

from __future__ import annotations

import sys
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
from angelshare.errors import AngelshareError

UrlArgument = Annotated[str, typer.Argument(help="A folder, or any fsspec address (s3://…).")]


KeysArgument = Annotated[
    list[str] | None, typer.Argument(help="Artifacts; default: what the study needs.")
]


@app.command("push")
def push_command(
    url: UrlArgument,
    keys: KeysArgument = None,
    store: StoreOption = None,
    config: ConfigOption = CONFIG,
) -> None:
    """Publish artifacts, with their receipts and measured joules, to another store.

    Inputs are not sent for an artifact's sake, but the records of what they cost are.
    """
    from angelshare.grid import plan_study
    from angelshare.store.remote import Remote
    from angelshare.store.transfer import push

    opened, remote = open_store(store, config), Remote(url)
    if keys:
        chosen = [find_artifact(opened, key) for key in keys]
    else:
        study = plan_study(read_config(config))
        planned = [opened.artifact(plan.kind, plan.key) for plan in study.artifacts.values()]
        chosen = [artifact for artifact in planned if artifact.manifest_path.exists()]
    if not chosen:
        out.print(f"Nothing to send: {opened.root} has none of this study's artifacts yet.")
    for artifact in chosen:
        done = push(artifact, remote, out.print)
        out.print(f"{artifact}: sent {done.objects} objects, {done.skipped} were there already")


@app.command("pull")
def pull_command(
    url: UrlArgument,
    keys: KeysArgument = None,
    config: ConfigOption = CONFIG,
) -> None:
    """Fetch what this configuration's study needs and lacks, where another store has it."""
    from angelshare.grid import plan_study
    from angelshare.reuse import fetch, offers_for

    checked = read_config(config)
    store, study = checked.store.open(), plan_study(checked)
    answer = offers_for(study, store, [url])
    for warning in answer.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for wanted in keys or []:
        if not any(key.startswith(wanted) for key in answer.offers):
            raise AngelshareError(
                f"{url} offers nothing whose key starts with {wanted!r} that this study needs and "
                "lacks; `angelshare plan` lists what it needs."
            )
    chosen = [key for key in answer.offers if not keys or key.startswith(tuple(keys))]
    if not chosen:
        out.print(f"Nothing to fetch: {url} has nothing that this study needs and lacks.")
    for key in chosen:
        plan = study.artifacts[key]
        fetch(store, plan, url, out.print)
        out.print(f"{plan.kind} {plan.label}: fetched, {answer.sizes[key]:,} bytes")


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
