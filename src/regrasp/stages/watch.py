"""A page about a run that goes on, served on loopback: the report's, with how far the run is."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import secrets
import socket
import sys
import threading
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import psutil
import yaml

from regrasp.errors import UserError
from regrasp.folders import CONFIG_FILE, LOCK_FILE, WARNINGS_FILE, leaves_folder
from regrasp.logging.metrics import METRICS_FILE, read_metrics
from regrasp.logging.report import Live, ReportData, report_page
from regrasp.logging.warning_file import read_warnings
from regrasp.stages.play import EVALUATION_FILE
from regrasp.stages.quickstart import STATE_FILE, read_stages
from regrasp.stages.report import SUMMARY_FILE, run_data

PORT = 8765
"""Where a page is served, if it is free."""
_FEW = 10
"""Updates by which the time of the next ones is estimated."""
_LOCK = re.compile(r"process (\d+) on (\S+)")


class Watched:
    """The page of a run, made anew when something in the run's folder has changed.

    Args:
        run_dir: Folder of a training, evaluation or quickstart run, which may have just begun.

    Raises:
        UserError: It is no folder of a run.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._nonce = secrets.token_urlsafe(16)
        self._lock = threading.Lock()  # charts are drawn by one thread at a time
        self._seen: tuple[Any, ...] | None = None
        self._page, self._tag = b"", ""
        self.page()

    def page(self) -> tuple[bytes, str]:
        """The page and a tag that changes with it."""
        with self._lock:
            seen = self._signature()
            if seen != self._seen:
                data, live = self._data()
                html = report_page(data, live, nonce=self._nonce, video=self._address)
                self._page = html.encode()
                self._tag = hashlib.sha256(self._page).hexdigest()[:32]
                self._seen = seen
            return self._page, self._tag

    def video(self, name: str) -> Path | None:
        """A video of the run by its path in the run's folder; None where that is none."""
        path = self.run_dir / name
        inside = not leaves_folder(name) and path.resolve().is_relative_to(self.run_dir.resolve())
        return path if inside and path.suffix == ".mp4" and path.is_file() else None

    def _address(self, video: Path) -> str:
        return "/videos/" + quote(video.relative_to(self.run_dir).as_posix())

    @property
    def _training(self) -> Path:
        """The folder that the training writes, which is inside that of a quickstart."""
        return self.run_dir / "train" if (self.run_dir / STATE_FILE).is_file() else self.run_dir

    def _signature(self) -> tuple[Any, ...]:
        names = (SUMMARY_FILE, STATE_FILE, EVALUATION_FILE, CONFIG_FILE)
        files = [self.run_dir / name for name in names]
        files += [self._training / name for name in (METRICS_FILE, WARNINGS_FILE)]
        stamps = [(file.stat().st_mtime_ns, file.stat().st_size) if file.exists() else None for file in files]
        videos = sorted(str(file) for file in self._training.glob("evaluations/*/**/*.mp4"))
        return (*stamps, *videos, writer_lives(self._training))

    def _data(self) -> tuple[ReportData, Live]:
        if (self.run_dir / STATE_FILE).is_file() and not (self.run_dir / SUMMARY_FILE).is_file():
            return self._quickstart()
        data = run_data(self.run_dir, begun=True)
        if data.base is not None or data.finetuned is not None:
            return data, Live("finished")
        return data, self._live(data, _total(self.run_dir))

    def _quickstart(self) -> tuple[ReportData, Live]:
        """A quickstart that has no summary yet."""
        seconds, base, stage = read_stages(self.run_dir)
        data = run_data(self.run_dir, begun=True)
        metrics = self._training / METRICS_FILE
        rows = read_metrics(metrics) if metrics.is_file() else []
        warnings = read_warnings(self._training)
        data = dataclasses.replace(data, base=base, metrics=rows, stage_seconds=seconds, warnings=warnings)
        if stage != "train":
            return data, Live(f"stage {stage}" if stage else "finished")
        return data, self._live(data, _total(self.run_dir))

    def _live(self, data: ReportData, total: int | None) -> Live:
        update = max((row["step"] for row in data.metrics), default=0)
        if total is not None and update >= total:
            return Live("finished", update, total)
        lives = writer_lives(self._training)
        state = ("running" if lives else "stopped") if update else "starting" if lives else "not begun"
        file = self._training / METRICS_FILE
        if not update or total is None or state != "running":
            return Live(state, update, total)
        few = [row for row in data.metrics if "time/step" in row][-_FEW:]
        each = sum(row["time/step"] + row.get("time/eval", 0.0) for row in few) / max(1, len(few))
        return Live(state, update, total, each * (total - update), file.stat().st_mtime)


def writer_lives(run_dir: Path) -> bool:
    """Whether the process that trains in a folder is alive, as far as this machine can tell."""
    try:
        match = _LOCK.match((run_dir / LOCK_FILE).read_text(encoding="utf-8", errors="replace"))
        locked = (run_dir / LOCK_FILE).stat().st_mtime
        if match is None:
            return False
        return match[2] != socket.gethostname() or psutil.Process(int(match[1])).create_time() <= locked + 1
    except (OSError, psutil.Error):
        return False


def _total(run_dir: Path) -> int | None:
    """Updates that a run is to make, as its settings say; None where they do not."""
    try:
        runner = yaml.safe_load((run_dir / CONFIG_FILE).read_text(encoding="utf-8"))["runner"]
        limits = [limit for limit in (runner["max_epochs"], runner["max_steps"]) if limit >= 0]
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError):
        return None
    return min(limits, default=None)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, watched: Watched, *arguments: Any) -> None:
        self._watched = watched
        super().__init__(*arguments)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not printed."""

    def do_GET(self) -> None:
        """The page, or one of its videos."""
        host = (self.headers.get("Host") or "").rpartition(":")[0]
        if host not in ("127.0.0.1", "localhost"):  # another name that was made to mean this machine
            self._send(HTTPStatus.FORBIDDEN, b"")
            return
        path = unquote(urlsplit(self.path).path)
        if path == "/":
            self._send_page()
        elif video := path.startswith("/videos/") and self._watched.video(path.removeprefix("/videos/")):
            self._send_video(video)
        else:
            self._send(HTTPStatus.NOT_FOUND, b"")

    def _send_page(self) -> None:
        try:
            page, tag = self._watched.page()
        except UserError as error:
            self._send(
                HTTPStatus.SERVICE_UNAVAILABLE, str(error).encode(), {"Content-Type": "text/plain; charset=utf-8"}
            )
            return
        headers = {"ETag": f'"{tag}"', "Cache-Control": "no-cache", "Content-Type": "text/html; charset=utf-8"}
        same = self.headers.get("If-None-Match") == headers["ETag"]
        self._send(HTTPStatus.NOT_MODIFIED if same else HTTPStatus.OK, b"" if same else page, headers)

    def _send_video(self, file: Path) -> None:
        """A file or the part that is asked for, without which a browser cannot play it from its beginning again."""
        data = file.read_bytes()
        headers = {"Content-Type": "video/mp4", "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked is None:
            self._send(HTTPStatus.OK, data, headers)
            return
        start, stop = int(asked[1]), min(len(data), int(asked[2]) + 1 if asked[2] else len(data))
        if start >= stop:
            self._send(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        self._send(HTTPStatus.PARTIAL_CONTENT, data[start:stop], headers)

    def _send(self, status: HTTPStatus, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        fixed = {
            "Content-Length": str(len(body)),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }
        for name, value in {**fixed, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def server(run_dir: Path, port: int | None = None) -> ThreadingHTTPServer:
    """A server of a run's page on loopback, which `serve_forever` runs.

    Args:
        run_dir: Folder of the run.
        port: Where; None: at `PORT` if that is free, else at any other.

    Raises:
        UserError: It is no folder of a run, or the port is taken.
    """
    handler = partial(_Handler, Watched(run_dir))
    for wanted in (PORT, 0) if port is None else (port,):
        try:
            return ThreadingHTTPServer(("127.0.0.1", wanted), handler)
        except OSError as error:
            if port is not None:
                raise UserError(
                    f"This port cannot be served: {error.strerror}", key="--port", value=port, fix="choose another"
                ) from error
    raise AssertionError("any port is free")


def address(served: ThreadingHTTPServer) -> str:
    """The address of the page."""
    return f"http://127.0.0.1:{served.server_port}/"


def _serve_for_parent(run_dir: Path) -> None:
    """Serve until standard input ends, which it does with the process that holds its other end."""
    served = server(run_dir)
    print(address(served), flush=True)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    _serve_for_parent(Path(sys.argv[1]))
