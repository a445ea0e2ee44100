"""Published files: named by their repository, fetched at a commit, known by their content."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from angelshare import published
from angelshare.cli import app
from angelshare.config import Config, load_config
from angelshare.errors import AngelshareError
from angelshare.grid import plan_study
from angelshare.preflight import require_ready
from angelshare.revisions import require_resolved, unresolved

ROOT = Path(__file__).resolve().parents[2]
ROWS = ROOT / "tests/data/benchmarks"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
DATA = "github:mtbench101/mt-bench-101/data/subjective/mtbench101.jsonl"
PROMPTS = "github:open-compass/opencompass/opencompass/datasets/subjective/mtbench101.py"
BASELINE = "hub:tatsu-lab/alpaca_eval/alpaca_eval_gpt4_baseline.json"
GAMED = "hub:tatsu-lab/alpaca_eval/df_gamed.csv"


class Mirror:
    """What a server on this machine has, by path, and what it was asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.url = ""
        self.cut = False


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Mirror]:
    """The hub and GitHub, on this machine; the current folder is an empty one."""
    found = Mirror()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked.append(self.path)
            content = found.files.get(self.path)
            if self.path.startswith("/api/"):
                assert self.headers["Accept"] == "application/vnd.github.sha"
                content = COMMIT.encode() if self.path.endswith("/commits/main") else None
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write((content or b"")[: -1 if found.cut else None])

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(published, "GITHUB_FILES", f"{found.url}/raw")
    monkeypatch.setattr(published, "GITHUB_API", f"{found.url}/api")
    monkeypatch.setenv("HF_ENDPOINT", f"{found.url}/hub")
    monkeypatch.setattr(
        "huggingface_hub.HfApi.repo_info", lambda *_, **__: SimpleNamespace(sha=COMMIT)
    )
    monkeypatch.chdir(tmp_path)
    for path, content in (
        (f"raw/mtbench101/mt-bench-101/{COMMIT}/data/subjective/mtbench101.jsonl", b"dialogues"),
        (
            f"raw/open-compass/opencompass/{COMMIT}/opencompass/datasets/subjective/mtbench101.py",
            b"prompts",
        ),
        (
            f"hub/datasets/tatsu-lab/alpaca_eval/resolve/{COMMIT}/alpaca_eval_gpt4_baseline.json",
            b"baseline",
        ),
        (f"hub/datasets/tatsu-lab/alpaca_eval/resolve/{COMMIT}/df_gamed.csv", b"gamed"),
    ):
        found.files[f"/{path}"] = content
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    path = tmp_path / "grid.yaml"
    path.write_text((ROOT / "config/grids/olmo2-paper.yaml").read_text())
    return path


def config_of(path: Path) -> Config:
    return load_config(yaml.safe_load(path.read_text()), str(path))


def resolve(path: Path) -> Any:
    return CliRunner().invoke(app, ["resolve", "--config", str(path)])


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_name_is_told_from_a_path() -> None:
    file = published.published(PROMPTS)
    assert file is not None
    assert (file.named, file.revision_name) == (PROMPTS, "github:open-compass/opencompass")
    assert file.url(COMMIT) == (
        f"https://raw.githubusercontent.com/open-compass/opencompass/{COMMIT}/"
        "opencompass/datasets/subjective/mtbench101.py"
    )
    file = published.published(GAMED)
    assert file is not None
    assert file.url(COMMIT) == (
        f"https://huggingface.co/datasets/tatsu-lab/alpaca_eval/resolve/{COMMIT}/df_gamed.csv"
    )
    for path in ("data/mtbench101.jsonl", "hub:file.json", "github:a/b", "github:a/b/../../c"):
        assert published.published(path) is None


def test_the_paper_s_five_benchmarks_are_planned_before_anything_is_fetched(grid, mirror) -> None:
    config = config_of(grid)
    study = plan_study(config)
    asked = {run.name for run in study.runs.values() if len(run.judged) == 2 and run.scores}
    assert asked == set(study.runs)
    assert config.evaluation.names == ["gsm8k", "mmlu", "ifeval", "alpaca_eval_2", "mt_bench_101"]
    assert f"{BASELINE} (not fetched)" in unresolved(config)
    assert mirror.asked == []


def test_one_command_pins_and_fetches(grid, mirror) -> None:
    before = grid.read_text()
    told = resolve(grid)
    assert told.exit_code == 0, told.output
    assert f"github:open-compass/opencompass: {COMMIT}" in told.output
    assert f"{GAMED}: sha256 {sha256(b'gamed')}" in told.output
    place = Path("downloads/github/mtbench101/mt-bench-101", COMMIT, "data/subjective")
    assert (place / "mtbench101.jsonl").read_bytes() == b"dialogues"
    after = grid.read_text()
    assert f"  {DATA}: {sha256(b'dialogues')}\n" in after
    assert after.count("\n") == before.count("\n"), "the rest stays as it is"

    config = config_of(grid)
    require_resolved(config)
    judged = plan_study(config).judged["mt_bench_101"]
    assert judged.answers["files"]["data"] == {"sha256": sha256(b"dialogues")}
    assert judged.settings.data == str(place / "mtbench101.jsonl")

    asked = len(mirror.asked)
    assert "0 names resolved" in resolve(grid).output
    assert len(mirror.asked) == asked, "what is there is not fetched again"


def test_another_checkout_has_the_same_keys_and_fetches_before_it_runs(grid, mirror) -> None:
    resolve(grid)
    config = config_of(grid)
    keys = set(plan_study(config).artifacts)
    place = Path("downloads/hub/tatsu-lab/alpaca_eval", COMMIT, "df_gamed.csv")
    place.unlink()
    assert set(plan_study(config).artifacts) == keys
    require_ready(config, {"train_student"}, {})
    with pytest.raises(AngelshareError, match=r"alpaca_eval_2\.gamed: .* is not in its place"):
        require_ready(config, {"judge_student"}, {"OPENAI_API_KEY": "k"})
    assert "1 files fetched" in resolve(grid).output
    require_ready(config, {"judge_student"}, {"OPENAI_API_KEY": "k"})


def test_a_judge_s_key_is_missed_before_the_first_job(grid, mirror) -> None:
    resolve(grid)
    with pytest.raises(AngelshareError, match=r"judges\.gpt4\.api_key_env: .* OPENAI_API_KEY is"):
        require_ready(config_of(grid), {"judge_teacher"}, {})
    require_ready(config_of(grid), {"train_student"}, {})


def test_what_is_not_that_file_is_refused(grid, mirror) -> None:
    resolve(grid)
    config, place = config_of(grid), next(Path("downloads").rglob("df_gamed.csv"))
    place.write_bytes(b"other")
    with pytest.raises(AngelshareError, match="is not the file that was fetched"):
        plan_study(config)
    (path,) = (path for path in mirror.files if path.endswith("df_gamed.csv"))
    mirror.files[path] = b"moved"
    told = resolve(grid)
    assert f"not that under files ({sha256(b'gamed')})" in str(told.exception)
    assert place.read_bytes() == b"other", "what came is not kept"
    assert [p.name for p in place.parent.iterdir()].count("df_gamed.csv") == 1
    mirror.files[path] = b"gamed"
    assert resolve(grid).exit_code == 0
    assert place.read_bytes() == b"gamed"


def test_what_cannot_be_fetched_is_one_clear_line(grid, mirror) -> None:
    mirror.cut = True
    told = resolve(grid)
    assert isinstance(told.exception, AngelshareError)
    assert "GitHub gives no commit of mtbench101/mt-bench-101 at main" in str(told.exception)
    mirror.cut = False
    (path,) = (path for path in mirror.files if path.endswith("df_gamed.csv"))
    content = mirror.files.pop(path)
    told = resolve(grid)
    assert f"{mirror.url}{path} cannot be fetched: HTTP Error 404" in str(told.exception)
    assert not list(Path("downloads").rglob("df_gamed.csv"))
    mirror.files[path] = content
    assert resolve(grid).exit_code == 0, "what was there already is kept, the rest is fetched"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (f"  {DATA}: null\n", f"write `{DATA}: null` under files"),
        ("  github:mtbench101/mt-bench-101: main\n", "main` under revisions and run"),
    ],
)
def test_a_name_without_a_line_is_an_error_with_advice(grid, line, says) -> None:
    grid.write_text(grid.read_text().replace(line, ""))
    with pytest.raises(AngelshareError) as raised:
        config_of(grid)
    assert says in str(raised.value)
    assert "evaluation.judged.mt_bench_101.data" in str(raised.value)


def test_a_file_cut_short_is_not_taken(mirror, tmp_path) -> None:
    mirror.cut = True
    (path,) = (path for path in mirror.files if path.endswith("df_gamed.csv"))
    with pytest.raises(AngelshareError, match=r"cannot be fetched|ended after 4 of 5 bytes"):
        published.download(f"{mirror.url}{path}", tmp_path / "file")
