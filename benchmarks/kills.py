"""What a training run makes of processes that are killed at random moments.

Small runs through the command line, their roles in processes of their own, in each of which processes of one kind are
killed (SIGKILL) at random moments, several updates apart. The metrics and weights that a run leaves are compared with
those of a run that nothing happened to. With `--json` a call adds its runs to those of earlier calls.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

from regrasp.checkpoint.layout import FULL_WEIGHTS
from results_file import save

SPACING = 4
"""Updates from one kill of a run to the next."""
KILLS = {"env": 5, "rollout": 5, "actor": 5, "simulator": 2, "driver": 1}
"""Of one run."""
UPDATES = 2 + SPACING * max(KILLS.values())
COMMAND = [
    *(sys.executable, "-m", "regrasp", "train", "--config_name", "pick_cube_ppo_mlp"),
    "cluster.component_placement={env:0,rollout:1,actor:2}",
    *("runner.logger.experiment_name=kills", "runner.logger.logger_backends=[]", f"runner.max_epochs={UPDATES}"),
    *("runner.val_check_interval=4", "runner.save_interval=1", "runner.keep_checkpoints=null"),
    *("env.train.total_num_envs=16", "env.train.num_workers=1", "env.eval.total_num_envs=8", "env.eval.num_workers=1"),
    *("env.eval.num_episodes=8", "env.train.timeouts.step_s=20", "env.eval.timeouts.step_s=20"),
    *("actor.global_batch_size=64", "actor.micro_batch_size=64", "runner.force=true", "algorithm.rollout_epoch=1"),
]
LOOSE_S = 10.0
"""After a run's end, what is there after this time is left over."""
LIMIT_S = 600.0
RESTARTED = "All processes were started again"
"""What a run says of env, rollout and actor processes."""


class Run:
    """One run in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "tmp").mkdir(parents=True)
        self.environment = {**os.environ, "TMPDIR": str(folder / "tmp"), "KILLS_RUN": str(folder)}
        self.before = set(Path("/dev/shm").iterdir())

    def start(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Start a command in a session of its own."""
        with (self.folder / "output.txt").open("ab") as output:
            return subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=output, stderr=output, start_new_session=True
            )

    def processes(self) -> Iterator[psutil.Process]:
        """All of the run, wherever they are in the tree: their environment is the run's."""
        for process in psutil.process_iter():
            try:
                if process.environ().get("KILLS_RUN") == str(self.folder) and process.status() != "zombie":
                    yield process
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue

    def victim(self, kind: str, driver: int) -> int | None:
        """A process of the kind."""
        if kind == "driver":
            return driver
        for process in self.processes():
            try:
                line = " ".join(process.cmdline())
                above = process.parent()
                parent = " ".join(above.cmdline()) if above else ""
            except psutil.NoSuchProcess:
                continue
            if (kind == "simulator" and parent.startswith("ray::env")) or line.startswith(f"ray::{kind} "):
                return process.pid
        return None

    @property
    def lines(self) -> list[dict[str, Any]]:
        """What was logged of each update, without what a clock says; a line that is being written is left out."""
        found = list(self.folder.glob("logs/regrasp/*/metrics.jsonl"))
        text = found[0].read_text() if found else ""
        rows = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [{tag: value for tag, value in row.items() if not tag.startswith("time/")} for row in rows]

    @property
    def num_restarts(self) -> int:
        """How often the run has started its processes again."""
        return (self.folder / "output.txt").read_text().count(RESTARTED)

    def weights(self) -> dict[str, torch.Tensor]:
        """Of the last update."""
        (file,) = self.folder.glob(f"logs/regrasp/*/kills/checkpoints/global_step_{UPDATES}/{FULL_WEIGHTS}")
        return torch.load(file, weights_only=True)

    @property
    def temporary(self) -> set[str]:
        """Names of temporary files."""
        return {path.name for path in (self.folder / "tmp").iterdir()}

    def leftovers(self, usual: set[str]) -> tuple[int, int, int]:
        """Processes, files in shared memory and temporary files but the `usual` ones, once they had time to go."""
        end = time.monotonic() + LOOSE_S
        while list(self.processes()) and time.monotonic() < end:
            time.sleep(0.1)
        shared = {path for path in set(Path("/dev/shm").iterdir()) - self.before if not path.name.startswith("sem.")}
        return len(list(self.processes())), len(shared), len(self.temporary - usual)


def wait_until(driver: subprocess.Popen[bytes], is_there: Callable[[], bool]) -> None:
    """Wait for something of a run, or for its end."""
    end = time.monotonic() + LIMIT_S
    while driver.poll() is None and not is_there():
        if time.monotonic() > end:
            raise TimeoutError(f"{driver.args}: this takes too long")
        time.sleep(0.05)


def killed(run: Run, driver: subprocess.Popen[bytes], kind: str) -> float | None:
    """Kill a process of the kind; seconds until an update was logged that was made after it; None: it had ended."""
    victim, restarts, known = run.victim(kind, driver.pid), run.num_restarts, len(run.lines)
    if victim is None:
        return None
    struck = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    if kind in ("env", "rollout", "actor"):
        wait_until(driver, lambda: run.num_restarts > restarts)
        known = len(run.lines)
    elif kind == "simulator":
        known += 1  # the one under way may not need it any more
    wait_until(driver, lambda: len(run.lines) > known)
    return time.monotonic() - struck


def killed_by_hand(
    run: Run, driver: subprocess.Popen[bytes], usual: set[str]
) -> tuple[float, subprocess.Popen[bytes], tuple[int, ...]]:
    """Kill the process that was started by hand, and go on from its last checkpoint; also what it left behind."""
    known = len(run.lines)
    driver.kill()
    driver.wait()
    left = run.leftovers(usual)
    (place,) = run.folder.glob("logs/regrasp/*/kills/checkpoints")
    driver = run.start([*COMMAND, f"runner.resume_dir={place.parent.parent}"])
    begun = time.monotonic()
    wait_until(driver, lambda: len(run.lines) > known)
    return time.monotonic() - begun, driver, left


def disturbed(folder: Path, kind: str, num_kills: int, expected: Run, moments: random.Random) -> dict[str, Any]:
    """A run with kills, and what came of it."""
    run, recoveries, left = Run(folder), [], (0, 0, 0)
    driver = run.start(COMMAND)
    for number in range(num_kills):
        after = 1 + SPACING * number + moments.randrange(2)
        wait_until(driver, lambda after=after: len(run.lines) >= after)
        time.sleep(moments.uniform(0.0, 0.5))
        if kind == "driver":
            recovery, driver, left = killed_by_hand(run, driver, expected.temporary)
        else:
            recovery = killed(run, driver, kind)
        if recovery is not None:
            recoveries.append(recovery)
    code = driver.wait()
    ends = [one + other for one, other in zip(left, run.leftovers(expected.temporary), strict=True)]
    steps = [line["step"] for line in run.lines]
    return {
        "exit_code": code,
        "recovery_s": recoveries,
        "lost": len(set(range(1, UPDATES + 1)) - set(steps)),
        "twice": len(steps) - len(set(steps)),
        "same_numbers": code == 0
        and run.lines == expected.lines
        and all(torch.equal(value, expected.weights()[name]) for name, value in run.weights().items()),
        "processes_left": ends[0],
        "shared_memory_left": ends[1],
        "temporary_left": ends[2],
        "load": os.getloadavg()[0],
    }


def row(kind: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """All runs of a kind in one line."""
    recoveries = [recovery for run in runs for recovery in run["recovery_s"]]
    return {
        "killed": kind,
        "kills": len(recoveries),
        "runs": len(runs),
        "updates_lost": sum(run["lost"] for run in runs),
        "updates_twice": sum(run["twice"] for run in runs),
        "other_numbers": sum(not run["same_numbers"] for run in runs),
        "failed": sum(run["exit_code"] != 0 for run in runs),
        "recovery_s": statistics.median(recoveries),
        "longest_s": max(recoveries),
        **{name: sum(run[name] for run in runs) for name in runs[0] if name.endswith("_left")},
        "load": statistics.mean(run["load"] for run in runs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=KILLS, action="append", help="what is killed; repeatable; all by default")
    parser.add_argument("--trials", type=int, default=20, help="kills of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="all runs; those that it holds already count, and are not made again")
    arguments = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {}
    if arguments.json is not None and arguments.json.exists():
        found = json.loads(arguments.json.read_text())
    with tempfile.TemporaryDirectory(prefix="kills-") as place:
        expected = Run(Path(place) / "undisturbed")
        code = expected.start(COMMAND).wait()
        assert code == 0, (expected.folder / "output.txt").read_text()
        for kind in arguments.kind or KILLS:
            runs = found.setdefault(kind, [])
            while (missing := arguments.trials - sum(len(run["recovery_s"]) for run in runs)) > 0:
                folder, moments = Path(place) / f"{kind}_{len(runs)}", f"{arguments.seed} {kind} {len(runs)}"
                runs.append(disturbed(folder, kind, min(missing, KILLS[kind]), expected, random.Random(moments)))
                print(kind, runs[-1], file=sys.stderr, flush=True)
                if arguments.json is not None:
                    arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    save("kills", shlex.join(["python", *sys.argv]), [row(kind, runs) for kind, runs in found.items() if runs])


if __name__ == "__main__":
    main()
