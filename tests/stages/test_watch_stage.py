"""The page about a run while it goes on, over HTTP, and in a real browser where one is installed."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_toys import SMALL, mlp_experiment

from regrasp.cli.main import main
from regrasp.errors import UserError
from regrasp.logging.video import write_video
from regrasp.stages.watch import Watched, address, server, writer_lives

_CHOSEN = os.environ.get("REGRASP_TEST_BROWSER_PYTHON")
BROWSER_PYTHON = Path(_CHOSEN) if _CHOSEN else Path(sys.prefix) / "browser" / "bin" / "python"
needs_browser = pytest.mark.skipif(
    not BROWSER_PYTHON.exists(), reason="NO BROWSER: run scripts/install_browser_tests.sh with a network"
)


def add_update(run: Path, step: int, success: float, *, evaluated: bool = False) -> None:
    row = {"step": step, "env/total_steps": 100.0 * step, "env/success_once": success, "time/step": 2.0}
    if evaluated:
        row |= {"eval/success_once": success, "eval/num_trajectories": 20.0, "time/eval": 1.0}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of eight updates that this process is making, with three of them done and one recorded evaluation."""
    run = tmp_path / "a run"
    run.mkdir()
    (run / "config.yaml").write_text(mlp_experiment("runner.max_epochs=8").to_yaml())
    (run / "run.lock").write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
    for step in range(1, 4):
        add_update(run, step, step / 8, evaluated=step == 2)
    (run / "warnings.txt").write_text("2026-01-01 10:00:00  a < b\n")
    frames = [np.full((32, 48, 3), level, dtype=np.uint8) for level in (50, 150, 250)]
    write_video(run / "evaluations" / "global_step_2" / "videos" / "episode_003_success.mp4", frames, fps=10)
    return run


@pytest.fixture
def site(run: Path) -> Iterator[str]:
    served = server(run, 0)
    thread = threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield address(served)
    served.shutdown()
    served.server_close()
    thread.join()


def get(url: str, **headers: str) -> HTTPResponse:
    request = urllib.request.Request(url, headers={name.replace("_", "-"): value for name, value in headers.items()})
    return urllib.request.urlopen(request, timeout=20)


def test_the_page_says_how_far_the_run_is(site: str, run: Path) -> None:
    answer = get(site)
    page = answer.read().decode()
    assert "<b>running</b>" in page
    assert "update 3 of 8" in page
    written = (run / "metrics.jsonl").stat().st_mtime
    left = float(re.findall(r'data-until="([\d.]+)"', page)[0]) - written
    assert left == pytest.approx(5 * (2 + 1 / 3), abs=1e-3), "five updates of 2 s, and a third of an evaluation each"
    assert "a &lt; b" in page
    assert "After update 2, episode 3" in page
    assert ">success</span>" in page
    nonce = re.findall(r"script-src 'nonce-([\w-]+)'", page)[0]
    assert page.count("<script") == page.count(f'<script nonce="{nonce}">') == 1

    with pytest.raises(urllib.error.HTTPError, match="304"):
        get(site, If_None_Match=answer.headers["ETag"])
    add_update(run, 4, 0.5)
    assert "update 4 of 8" in get(site, If_None_Match=answer.headers["ETag"]).read().decode()
    for step in range(5, 9):
        add_update(run, step, 0.5)
    page = get(site).read().decode()
    assert "<b>finished</b>" in page
    assert "data-until=" not in page[page.index("<main") : page.index("<script")]


def test_videos_are_served_in_parts(site: str, run: Path) -> None:
    url = site + re.findall(r'<video src="/([^"]+)"', get(site).read().decode())[0]
    whole = next(run.rglob("*.mp4")).read_bytes()
    assert get(url).read() == whole
    part = get(url, Range="bytes=10-19")
    assert (part.status, part.read(), part.headers["Content-Range"]) == (206, whole[10:20], f"bytes 10-19/{len(whole)}")
    assert get(url, Range="bytes=10-").read() == whole[10:]
    with pytest.raises(urllib.error.HTTPError, match="416"):
        get(url, Range=f"bytes={len(whole)}-")


@pytest.mark.parametrize("path", ["config.yaml", "videos/config.yaml", "videos/../x.mp4", "videos/%2e%2e/secret.mp4"])
def test_nothing_else_is_served(site: str, run: Path, path: str) -> None:
    (run.parent / "secret.mp4").write_bytes(b"secret")
    (run / "link.mp4").symlink_to(run.parent / "secret.mp4")
    for name in (path, "videos/link.mp4"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(site + name)


def test_only_this_machine_by_its_own_name_is_answered(site: str) -> None:
    assert site.startswith("http://127.0.0.1:")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        get(site, Host="evil.example:80")
    assert get(site, Host="localhost:1").status == 200


def test_states_of_a_run(run: Path) -> None:
    assert writer_lives(run)
    ended = subprocess.Popen(["true"])
    ended.wait()
    (run / "run.lock").write_text(f"process {ended.pid} on {socket.gethostname()}\n")
    assert not writer_lives(run)
    assert b"<b>stopped</b>" in Watched(run).page()[0]
    (run / "metrics.jsonl").unlink()
    assert b"<b>not begun</b>" in Watched(run).page()[0]


def test_a_quickstart_is_watched_from_its_first_stage_on(tmp_path: Path, run: Path) -> None:
    folder = tmp_path / "seed_0"
    folder.mkdir()
    shutil.copy(run / "config.yaml", folder)
    stage = {"seconds": 3.0, "cpu_seconds": 3.0, "result": {}}
    stages: dict[str, Any] = {"pretrain": stage | {"result": {"folder": "x"}}, "collect": stage}
    (folder / "stages.json").write_text(json.dumps(stages))
    watched = Watched(folder)
    assert b"<b>stage sft</b>" in watched.page()[0]
    summary = {"success": 0.25, "ci95": [0.1, 0.5], "episodes": 20, "per_instruction": {"red": [5, 20]}}
    base = stage | {"result": {"summary": summary, "videos": []}}
    (folder / "stages.json").write_text(json.dumps({**stages, "sft": stage, "evaluate_base": base}))
    shutil.copytree(run, folder / "train")
    page = watched.page()[0].decode()
    assert "<b>running</b>" in page
    assert "25.0 %" in page
    assert "update 3 of 8" in page


def test_what_cannot_be_watched(tmp_path: Path, run: Path, site: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(tmp_path)]) == 2
    assert "nothing to report" in capsys.readouterr().err
    with pytest.raises(UserError, match="cannot be served"):
        server(run, int(site.rstrip("/").rpartition(":")[2]))


def test_a_training_is_watched_by_a_process_that_ends_with_it(
    tmp_path: Path, start_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--config_name", "pick_cube_ppo_mlp", "--model_path", str(start_model), *SMALL]
    seen: list[str] = []

    def look(*_: object) -> bool:
        seen.append(re.findall(r"Watch it at (http\S+)", capsys.readouterr().out)[0])
        page = get(seen[0]).read().decode()
        assert "<b>not begun</b>" in page
        return False

    monkeypatch.setattr("regrasp.stages.train.train", look)
    assert main(["train", *arguments, "--watch"]) == 130
    with pytest.raises(urllib.error.URLError):
        get(seen[0])


@needs_browser
@pytest.mark.full
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(site: str, run: Path, width: int) -> None:
    """Fits its window, follows the run, keeps an unchanged video playing, and has no error."""
    script = Path(__file__).parent / "browser_script.py"
    command = [str(BROWSER_PYTHON), str(script), site, str(width)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as browser:
        assert browser.stdin is not None
        assert browser.stdout is not None
        first = json.loads(browser.stdout.readline())
        add_update(run, 4, 0.9, evaluated=True)
        browser.stdin.write("go on\n")
        browser.stdin.flush()
        then = json.loads(browser.stdout.readline())
    assert first["scroll_width"] == then["scroll_width"] == width
    assert first["errors"] == then["errors"] == []
    assert "update 3 of 8" in first["state"]
    assert "update 4 of 8" in then["state"]
    assert re.search(r"\d:\d\d left", then["state"])
    assert then["same_video"]
    assert first["video_ready"]
    assert first["charts"] == [{"wide": width > 640, "narrow": width <= 640}]
    assert first["chart_right"] <= width
    assert min(first["letters"]) >= 8, "pixels of the smallest letters of a chart"
