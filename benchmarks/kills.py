"""What a training run makes of processes that are killed at random moments.

A small run through the command line, its roles in processes of their own, in which a process of the kind is killed
(SIGKILL) once, at a random moment between its first update and its end. The metrics and weights that it leaves are
compared with those of a run that nothing happened to.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

from regrasp.checkpoint.layout import FULL_WEIGHTS
from results_file import save

KINDS = ("env", "rollout", "actor", "simulator", "driver")
UPDATES = 12
COMMAND = [
    *(sys.executable, "-m", "regrasp.cli.main", "train", "--config_name", "pick_cube_ppo_mlp"),
    "cluster.component_placement={env:0,rollout:1,actor:2}",
    *("runner.logger.experiment_name=kills", "runner.logger.logger_backends=[]", f"runner.max_epochs={UPDATES}"),
    *("runner.val_check_interval=4", "runner.save_interval=1", "runner.keep_checkpoints=null"),
    *("env.train.total_num_envs=16", "env.train.num_workers=1", "env.eval.total_num_envs=8", "env.eval.num_workers=1"),
    *("env.eval.num_episodes=8", "env.train.timeouts.step_s=20", "env.eval.timeouts.step_s=20"),
    *("actor.global_batch_size=64", "actor.micro_batch_size=64", "runner.force=true", "algorithm.rollout_epoch=1"),
]
LOOSE_S = 10.0
"""After a run's end, what is there after this time is left over."""


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
                parent = " ".join(process.parent().cmdline()) if process.parent() else ""
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

    def weights(self) -> dict[str, torch.Tensor]:
        """Of the last update."""
        (file,) = self.folder.glob(f"logs/regrasp/*/kills/checkpoints/global_step_{UPDATES}/{FULL_WEIGHTS}")
        return torch.load(file, weights_only=True)

    def leftovers(self) -> tuple[int, int, int]:
        """Processes, files in shared memory and temporary files, once they had time to go."""
        end = time.monotonic() + LOOSE_S
        while list(self.processes()) and time.monotonic() < end:
            time.sleep(0.1)
        shared = {path for path in set(Path("/dev/shm").iterdir()) - self.before if not path.name.startswith("sem.")}
        return len(list(self.processes())), len(shared), len(list((self.folder / "tmp").iterdir()))


def wait_for_line(run: Run, driver: subprocess.Popen[bytes], number: int, limit: float = 600.0) -> None:
    """Wait until so many updates are logged."""
    end = time.monotonic() + limit
    while len(run.lines) < number and driver.poll() is None:
        if time.monotonic() > end:
            raise TimeoutError(f"{run.folder}: no update {number}")
        time.sleep(0.05)


def trial(folder: Path, kind: str, expected: Run, moments: random.Random) -> dict[str, Any]:
    """Kill once, and see what comes of it."""
    run = Run(folder)
    driver = run.start(COMMAND)
    wait_for_line(run, driver, moments.randint(1, UPDATES - 2))
    time.sleep(moments.uniform(0.0, 1.0))
    victim = run.victim(kind, driver.pid)
    known, struck = len(run.lines), time.monotonic()
    if victim is not None:
        os.kill(victim, signal.SIGKILL)
    if kind == "driver":
        driver.wait()
        left = run.leftovers()
        (place,) = run.folder.glob("logs/regrasp/*/kills/checkpoints")
        driver = run.start([*COMMAND, f"runner.resume_dir={place.parent.parent}"])
        struck, resumed = time.monotonic(), len(run.lines)
        while len(run.lines) <= min(known, resumed) and driver.poll() is None:
            time.sleep(0.05)
    else:
        left = (0, 0, 0)
        wait_for_line(run, driver, min(known + 1, UPDATES))
    recovery = time.monotonic() - struck
    code = driver.wait()
    ends = [one + other for one, other in zip(left, run.leftovers(), strict=True)]
    steps = [line["step"] for line in run.lines]
    same = run.lines == expected.lines and all(
        torch.equal(value, expected.weights()[name]) for name, value in run.weights().items()
    )
    return {
        "exit_code": code,
        "struck": victim is not None,
        "lost": len(set(range(1, UPDATES + 1)) - set(steps)),
        "twice": len(steps) - len(set(steps)),
        "same_numbers": same,
        "recovery_s": recovery,
        "processes_left": ends[0],
        "shared_memory_left": ends[1],
        "temporary_left": ends[2],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no further trial after so many")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    kinds = arguments.kinds.split(",")
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory(prefix="kills-") as place:
        expected = Run(Path(place) / "undisturbed")
        code = expected.start(COMMAND).wait()
        assert code == 0, (expected.folder / "output.txt").read_text()
        for number in range(arguments.trials):
            for kind in kinds:
                if time.monotonic() < end:
                    moments = random.Random(f"{arguments.seed} {kind} {number}")
                    one = trial(Path(place) / f"{kind}_{number}", kind, expected, moments)
                    print(kind, number, one, file=sys.stderr, flush=True)
                    found[kind].append(one)
    rows = [
        {
            "killed": kind,
            "trials": sum(one["struck"] for one in trials),
            "updates_lost": sum(one["lost"] for one in trials),
            "updates_twice": sum(one["twice"] for one in trials),
            "other_numbers": sum(not one["same_numbers"] for one in trials),
            "failed": sum(one["exit_code"] != 0 for one in trials),
            "recovery_s": statistics.median(one["recovery_s"] for one in trials),
            "longest_s": max(one["recovery_s"] for one in trials),
            **{name: sum(one[name] for one in trials) for name in trials[0] if name.endswith("_left")},
        }
        for kind, trials in found.items()
        if trials
    ]
    save("kills", shlex.join(["python", *sys.argv]), rows)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"rows": rows, "trials": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
