"""`regrasp watch`: a page about a run while it goes on."""

from __future__ import annotations

import argparse
import contextlib
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="folder of a run, as [INFO] Logging to: ... names it")
    parser.add_argument("--port", metavar="N", type=int, help="on 127.0.0.1; default: 8765, or any that is free")


def run(args: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C."""
    from regrasp.stages.watch import address, server

    with server(args.run_dir, args.port) as served:
        _log.info("Watching %s at %s (Ctrl-C ends that, not the run)", args.run_dir.resolve(), address(served))
        with contextlib.suppress(KeyboardInterrupt):
            served.serve_forever()
    return 0


@contextlib.contextmanager
def watched(run_dir: Path, *, wanted: bool) -> Iterator[None]:
    """Around a run with `--watch`: its page is served by a process of its own, which ends with this one."""
    if not wanted:
        yield
        return
    command = [sys.executable, "-m", "regrasp.stages.watch", str(run_dir)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if found := process.stdout.readline().strip():
            _log.info("Watch it at %s", found)
        else:
            _log.warning("The page of --watch could not be served, and the run goes on.")
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                process.stdin.close()
            process.terminate()
