"""Hub names: which commits a configuration means."""

from __future__ import annotations

from angelshare.cli.common import CONFIG, ConfigOption, app, out, read_config
from angelshare.revisions import resolve_file


@app.command("resolve")
def resolve_command(config: ConfigOption = CONFIG) -> None:
    """Write the commit of every hub name that is pinned to a branch or tag into the file."""
    commits = resolve_file(config, read_config(config))
    for name, commit in commits.items():
        out.print(f"{name}: {commit}", highlight=False, soft_wrap=True)
    out.print(f"{len(commits)} hub names resolved in {config}.", highlight=False, soft_wrap=True)
