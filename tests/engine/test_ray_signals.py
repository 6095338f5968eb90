"""Ctrl-C and SIGTERM of a run of several processes: it saves, says so, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import regrasp

END_S = 30.0
START_S = 120.0
COMMAND = (
    *(sys.executable, "-m", "regrasp", "train", "--config_name", "pick_cube_ppo_mlp"),
    "cluster.component_placement={env:0,rollout:1,actor:2}",
    *("runner.logger.experiment_name=signals", "runner.logger.logger_backends=[]", "runner.max_epochs=1000"),
    *("runner.val_check_interval=-1", "runner.save_interval=-1", "runner.force=true"),
    *("env.train.total_num_envs=4", "env.train.num_workers=1", "algorithm.rollout_epoch=1"),
    *("actor.global_batch_size=16", "actor.micro_batch_size=16"),
)
SAID_BEFORE = ("[INFO] Logging to:", "[WARN] Node 0 has", "[WARN] No", "[WARN] The", "Starting processes:")
SAID_AFTER = ("[INFO] Stopping", "interrupted", "Checkpoint: ", "To continue: ", "No update was finished")


class Command:
    """A training run as a user calls it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._output = folder / "output.txt"
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(regrasp.__file__).parents[1]),
            "PYTHONUNBUFFERED": "1",
            "SIGNALS_RUN": str(folder),
        }
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                COMMAND, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
            )

    @property
    def lines(self) -> list[str]:
        return [line for line in self._output.read_text().splitlines() if line.strip()]

    def processes(self) -> Iterator[psutil.Process]:
        """Those of the run that are alive, wherever they are in the tree."""
        for process in psutil.process_iter():
            try:
                if process.environ().get("SIGNALS_RUN") == str(self.folder) and process.status() != "zombie":
                    yield process
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue

    def wait_for(self, moment: Callable[[Command], bool]) -> None:
        end = time.monotonic() + START_S
        while not moment(self):
            assert self.process.poll() is None, self.lines
            assert time.monotonic() < end, self.lines
            time.sleep(0.05)

    def send(self, number: signal.Signals) -> None:
        """A terminal sends Ctrl-C to all processes of the session, and a scheduler SIGTERM to the first."""
        (os.killpg if number == signal.SIGINT else os.kill)(self.process.pid, number)


def runs(title: str) -> Callable[[Command], bool]:
    """Whether there is a process of this name."""
    return lambda command: any(title in " ".join(one.cmdline()[:1]) for one in command.processes())


def has_updated(command: Command) -> bool:
    return any("2/1000" in line for line in command.lines)


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    made = Command(tmp_path)
    yield made
    for process in made.processes():
        process.kill()
    made.process.wait()


MOMENTS = {"servers": runs("gcs_server"), "processes": runs("ray::env"), "updates": has_updated}


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_ends_the_run_in_order(command: Command, moment: str, number: signal.Signals) -> None:
    command.wait_for(MOMENTS[moment])
    time.sleep(0.3)
    command.send(number)
    assert command.process.wait(END_S) == 130, command.lines
    assert [process.cmdline() for process in command.processes()] == []
    ends_at = [line.startswith("[INFO] Stopping") for line in command.lines].index(True)
    before, after = without_legend(command.lines[:ends_at]), command.lines[ends_at:]
    assert [line for line in before if not (line.startswith((*SAID_BEFORE, "   update")) or "/1000 " in line)] == []
    assert [line for line in after if not (line.startswith((*SAID_AFTER, *SAID_BEFORE)) or "/1000 " in line)] == []
    saved = list(command.folder.glob("logs/regrasp/*/signals/checkpoints/global_step_*"))
    assert len(saved) == (moment == "updates")


def without_legend(lines: list[str]) -> list[str]:
    """Less what the columns of the table mean, which stands above its head."""
    head = next((place for place, line in enumerate(lines) if line.startswith("   update")), 0)
    legend = [place for place in range(head) if lines[place].startswith("success: ")]
    return lines[: legend[0]] + lines[head:] if legend else lines


@pytest.mark.full
def test_a_second_signal_ends_the_run_at_once(command: Command) -> None:
    command.wait_for(has_updated)
    for _ in range(2):
        command.send(signal.SIGINT)
        time.sleep(0.02)
    assert command.process.wait(END_S) == 130, command.lines
    assert [process.cmdline() for process in command.processes()] == []
    assert not [line for line in command.lines if "Traceback" in line or "***" in line or "raylet" in line]
