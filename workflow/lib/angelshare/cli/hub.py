"""Hub names: which commits a configuration means, and the files that it reads from repositories."""

from __future__ import annotations

from angelshare.cli.common import CONFIG, ConfigOption, app, out, read_config
from angelshare.published import fetch_files
from angelshare.revisions import resolve_file


@app.command("resolve")
def resolve_command(config: ConfigOption = CONFIG) -> None:
    """Pin every name to a commit, in the file, and fetch the files of judged benchmarks."""
    commits = resolve_file(config, read_config(config))
    for name, commit in commits.items():
        out.print(f"{name}: {commit}", highlight=False, soft_wrap=True)
    out.print(f"{len(commits)} names resolved in {config}.", highlight=False, soft_wrap=True)
    fetched = fetch_files(config, read_config(config))
    for name, sha256 in fetched.items():
        out.print(f"{name}: sha256 {sha256}", highlight=False, soft_wrap=True)
    if fetched:
        out.print(f"{len(fetched)} files fetched.", highlight=False, soft_wrap=True)
