"""A catalogue of a store: what it offers, what that cost, and who reads it already.

One JSON for programs and one static page for people, made from manifests, attempt records and
consumer records alone; no object is opened. The page needs nothing else and runs no script.
Energies are joules with their 95 % interval; what no record tells is null, never 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from angelshare.energy.attempts import bill_of, read_attempts
from angelshare.files import publish_bytes, publish_json
from angelshare.store.artifacts import Artifact, ArtifactStore
from angelshare.store.provenance import licence_texts, restricted_models

SCHEMA_NAME = "angelshare/catalogue/1"

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100% }
th, td { border-bottom: 1px solid #ddd; padding: .4rem .6rem; text-align: left;
  vertical-align: top }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
small { color: #555 }
@media (prefers-color-scheme: dark) {
  body { background: #111; color: #eee } th, td { border-color: #444 } small { color: #aaa } }
</style>
<h1>{{ title }}</h1>
<p>{{ artifacts | length }} artifacts. Each is reused by any run whose recipe has its key.</p>
<div class="wide" role="region" aria-label="Artifacts" tabindex="0"><table>
<tr><th scope="col">Artifact<th scope="col">Settings<th scope="col">Licence
<th scope="col" class="n">Rows<th scope="col" class="n">Tokens<th scope="col" class="n">Bytes
<th scope="col" class="n">Energy<th scope="col" class="n">Consumers
{% for one in artifacts %}
<tr><th scope="row">{{ one.kind }}<br><small><code>{{ one.key }}</code></small>
<td><details><summary>{{ one.summary }}</summary><small>
{% for name, value in one.settings.items() %}{{ name }} = {{ value }}<br>
{% endfor %}</small></details>
<td>{% for name, text in one.licences.items() %}{{ text }} <small>({{ name }})</small><br>
{% else %}not stated{% endfor %}
{% if one.restricted %}<strong>{{ one.restricted | join(", ") }} restricts training on its outputs
</strong>{% endif %}
<td class="n">{{ "{:,}".format(one.rows) }}
<td class="n">{{ "{:,}".format(one.tokens) }}
<td class="n">{{ "{:,}".format(one.bytes) }}
<td class="n">{% if one.energy is none %}not recorded{% else %}
{{ "{:,.1f}".format(one.energy.energy_j) }} J<br><small>
{{ "{:,.1f}".format(one.energy.low_j) }} to {{ "{:,.1f}".format(one.energy.high_j) }}<br>
{{ "{:,.1f}".format(one.energy.measured_j) }} J of it measured{{ one.energy.origin }}</small>
{% endif %}
<td class="n">{{ one.consumers | length }}
{% endfor %}
</table></div>
</html>
"""


def write_catalogue(store: ArtifactStore, folder: Path) -> list[Path]:
    """Publish ``catalogue.json`` and ``catalogue.html`` in ``folder``; return their paths."""
    found = catalogue(store)
    json_path, page_path = folder / "catalogue.json", folder / "catalogue.html"
    publish_json(json_path, found)
    publish_bytes(page_path, render(found).encode())
    return [json_path, page_path]


def catalogue(store: ArtifactStore) -> dict[str, Any]:
    """Every sealed artifact of the store as plain values, in order of kind and key.

    Raises:
        AngelshareError: when a manifest, an attempt record or a consumer record is damaged.
    """
    sealed = (artifact for artifact in store.artifacts() if artifact.manifest_path.exists())
    return {"schema": SCHEMA_NAME, "artifacts": [_entry(artifact) for artifact in sealed]}


def render(found: Mapping[str, Any], title: str = "Teacher artifacts") -> str:
    """The page as text, everything from the store escaped; equal catalogues give equal text."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(PAGE).render(title=title, artifacts=found["artifacts"])


def _entry(artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest()
    settings = dict(_flat(manifest.recipe))
    records = [record for record, _ in manifest.provenances]
    return {
        "kind": manifest.kind,
        "key": manifest.key,
        "summary": _summary(settings),
        "settings": settings,
        "recipe": manifest.recipe,
        "content_sha256": manifest.content_sha256,
        "parts": len(manifest.parts),
        "rows": manifest.rows,
        "tokens": manifest.tokens,
        "bytes": manifest.bytes,
        "energy": _energy(artifact),
        "licences": licence_texts(records),
        "restricted": restricted_models(records),
        "consumers": [
            consumer.model_dump(include={"run", "team", "tokens_read", "utc"})
            for consumer in artifact.consumers()
        ],
    }


def _energy(artifact: Artifact) -> dict[str, Any] | None:
    """The bill over all attempts, with its interval and how much of it a meter saw."""
    records = read_attempts(artifact.attempts, sweep=False)
    if not records:
        return None
    bill = bill_of(records)
    u95_j = bill.u95_j or 0.0
    imported = any(part.method == "imported" for one in records for part in one.components)
    return {
        "energy_j": bill.energy_j,
        "low_j": max(0.0, bill.energy_j - u95_j),
        "high_j": bill.energy_j + u95_j,
        "wasted_j": bill.wasted_j,
        "measured_j": sum(one.total.measured_j for one in records),
        "missing": sorted({name for one in records for name in one.total.missing}),
        "attempts": bill.attempts,
        "origin": ", in another store (imported)" if imported else "",
    }


def _flat(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """The recipe's settings by dotted name."""
    if isinstance(value, Mapping) and value:
        for name in value:
            yield from _flat(value[name], f"{where}.{name}" if where else str(name))
    else:
        yield where, value


def _summary(settings: Mapping[str, Any]) -> str:
    """The first few settings that say what this artifact is, shortened."""
    dull = ("kind", "version", "parts", "part_rows")
    chosen = [
        f"{name.rpartition('.')[2]} {value}"
        for name, value in settings.items()
        if name not in dull and not name.startswith("inputs.") and value not in (None, [], {})
    ]
    text = ", ".join(chosen)
    return text if len(text) <= 90 else text[:89] + "…"
