"""``results/status.html``: the study while it runs, on one page that reloads itself."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from angelshare.accounting.units import energy
from angelshare.files import publish_bytes
from angelshare.progress.cluster import SlurmJob
from angelshare.progress.study import STATES, Progress, Task, time_text

RELOAD_S = 30
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;width:100%}td,th{padding:.2rem .6rem;text-align:left;"
    "border-bottom:1px solid #ddd}.running{color:#06c}.failed{color:#b00}.waiting{color:#777}"
)


def write_page(progress: Progress, jobs: Iterable[SlurmJob], path: Path) -> None:
    """Publish the page; it names the report once that is there."""
    ordered = sorted(progress.tasks, key=lambda task: -STATES.index(task.state))
    rows = [_row(task) for task in ordered]
    trouble = [f"<li>{escape(str(job))}</li>" for job in jobs if job.cause]
    seconds, known = progress.left_s()
    left = f"{'About' if known else 'More than'} {time_text(seconds)} left." if seconds else ""
    page = f"""<!doctype html><html lang="en"><meta charset="utf-8">
<meta http-equiv="refresh" content="{RELOAD_S}"><title>Angelshare: status</title>
<style>{_STYLE}</style><h1>{escape(progress.summary())}</h1>
<p>As of {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC. {left}
{"The <a href='report.html'>report</a> is there." if (path.parent / "report.html").exists() else ""}
</p><progress max="{len(progress.tasks)}" value="{progress.finished}"></progress>
{"<h2>Jobs in trouble</h2><ul>" + "".join(trouble) + "</ul>" if trouble else ""}
<table><tr><th>rule</th><th>makes</th><th>state</th><th>attempts</th><th>energy</th></tr>
{"".join(rows)}</table></html>
"""
    publish_bytes(path, page.encode())


def _row(task: Task) -> str:
    used = energy(sum(attempt.energy_j for attempt in task.attempts))
    values = (task.rule, task.label, task.state, str(len(task.attempts)), used)
    cells = "".join(f"<td>{escape(value)}</td>" for value in values)
    return f"<tr class='{task.state}'>{cells}</tr>"
