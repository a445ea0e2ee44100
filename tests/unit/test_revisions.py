"""Hub names: planned with a branch, run with a commit only."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from angelshare.config import load_config
from angelshare.errors import AngelshareError
from angelshare.grid import plan_study
from angelshare.revisions import ask_hub, hub_entries, require_resolved, resolve_file, unresolved

GRID = Path(__file__).resolve().parents[2] / "config/grids/olmo2-paper.yaml"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def config_of(path: Path):
    return load_config(yaml.safe_load(path.read_text()), str(path))


@pytest.fixture
def grid(tmp_path) -> Path:
    path = tmp_path / "grid.yaml"
    path.write_text(GRID.read_text())
    return path


def test_a_branch_plans_a_study_and_stops_a_run(grid) -> None:
    config = config_of(grid)
    assert plan_study(config).runs
    assert "allenai/OLMo-2-0325-32B-SFT (main)" in unresolved(config)
    with pytest.raises(AngelshareError, match=r"17 names .*`angelshare resolve --config"):
        require_resolved(config)


def test_resolving_writes_commits_and_leaves_the_rest(grid) -> None:
    asked = []

    def resolve(kind: str, name: str, revision: str) -> str:
        asked.append((kind, name, revision))
        return COMMIT

    before = grid.read_text()
    commits = resolve_file(grid, config_of(grid), resolve)
    assert len(commits) == len(asked) == 13
    assert ("github", "github:open-compass/opencompass", "main") in asked
    assert ("model", "allenai/OLMo-2-0425-1B", "main") in asked
    assert ("dataset", "cais/mmlu", "main") in asked
    after = grid.read_text()
    assert f"  allenai/OLMo-2-0425-1B: {COMMIT}  # main\n" in after
    assert after.replace(f": {COMMIT}  # main", ": main") == before
    config = config_of(grid)
    assert all(name.endswith("(not fetched)") for name in unresolved(config))
    assert {revision for *_, revision in hub_entries(config)} == {COMMIT}
    assert resolve_file(grid, config, resolve) == {}
    assert set(plan_study(config).artifacts).isdisjoint(plan_study(config_of(GRID)).artifacts)


def test_a_revision_stated_at_its_entry_wins_and_is_not_rewritten(grid) -> None:
    text = grid.read_text()
    entry = "{model: allenai/OLMo-2-0325-32B-SFT, license: Apache-2.0}"
    grid.write_text(text.replace(entry, entry.replace("}", ", revision: v1}")))
    config = config_of(grid)
    assert "allenai/OLMo-2-0325-32B-SFT (v1)" in unresolved(config)
    with pytest.raises(AngelshareError, match=r"teachers\.olmo2_32b states the revision 'v1'"):
        resolve_file(grid, config, lambda *_: COMMIT)


def test_a_name_without_any_revision_is_an_error_with_advice(grid) -> None:
    grid.write_text(grid.read_text().replace("  allenai/OLMo-2-0425-1B: main\n", ""))
    with pytest.raises(AngelshareError, match=r"students\.1b\.revision is missing: .*`allenai"):
        config_of(grid)


def test_the_hub_s_refusal_is_told(monkeypatch) -> None:
    import huggingface_hub

    from angelshare.revisions import ask_hub

    class Offline:
        def repo_info(self, *_, **__):
            raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "HfApi", Offline)
    with pytest.raises(AngelshareError, match="no commit of model a/b at main: no route"):
        ask_hub("model", "a/b", "main")


def test_a_hub_that_cannot_be_reached_is_one_clear_line(monkeypatch) -> None:
    """Whatever the hub library's HTTP client raises: its type is no `OSError`."""

    class ConnectError(Exception):
        pass

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", unreachable)
    with pytest.raises(AngelshareError, match="no commit of model a/b at main: Name or service"):
        ask_hub("model", "a/b", "main")
