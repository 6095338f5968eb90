"""Processes of a Ray run that are killed or stopped: it goes on by itself, and every update is made once."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from rank_toys import NUM_ENVS, PointEnv, create_env, create_policy, engine, experiment
from torch import Tensor

from regrasp.checkpoint.layout import FULL_WEIGHTS
from regrasp.checkpoint.write import new_checkpoint
from regrasp.engine.base import Engine, UpdateLostError
from regrasp.engine.placement import plan
from regrasp.engine.ray.cluster import Machines
from regrasp.engine.ray.engine import RayEngine
from regrasp.engine.ray.processes import Makers
from regrasp.engine.ray.snapshots import Snapshots
from regrasp.envs.config import EnvConfig, EnvName
from regrasp.envs.contract import Step, VecEnv
from regrasp.errors import LostError
from regrasp.experiment import ClusterConfig, ExperimentConfig
from regrasp.ranks import Ranks

UPDATES = 3
STRUCK = 1
"""The update that something happens in."""
STEP_S = 2.0
OVERRIDES = (
    "runner.val_check_interval=1",
    f"env.train.timeouts.step_s={STEP_S}",
    f"env.eval.timeouts.step_s={STEP_S}",
)
Strike = Callable[[str], None]
"""Given what the run is about to do, or does."""


def config_of(*overrides: str, algorithm: str = "ppo") -> ExperimentConfig:
    config = experiment(algorithm, *OVERRIDES, *overrides)
    return dataclasses.replace(config, cluster=ClusterConfig(component_placement={"env": 0, "rollout": 1, "actor": 2}))


def trained(one: Engine, folder: Path, strike: Strike) -> tuple[Any, ...]:
    """What a run of three updates leaves: metrics, episodes of an evaluation, weights."""
    lines = []
    while len(lines) < UPDATES:
        update = len(lines)

        def during(what: str, is_struck: bool = update == STRUCK) -> Callable[[], bool]:
            def asked() -> bool:
                if is_struck:
                    strike(what)
                return False

            return asked

        collected = one.collect(update, during("rollout"))
        try:
            metrics = one.update(update, during("update"))
        except UpdateLostError:
            continue
        lines.append({**collected.metrics, **metrics, "steps": collected.num_steps})
    episodes = [
        [result.total_reward, result.length] for result in one.evaluate(NUM_ENVS, lambda _: strike("evaluation"))
    ]
    strike("save")
    saved = new_checkpoint(folder, UPDATES, lambda draft: one.save(draft, UPDATES, {}, export=False))
    return lines, episodes, torch.load(saved / FULL_WEIGHTS, weights_only=True)


def in_one_process(folder: Path, config: ExperimentConfig) -> tuple[Any, ...]:
    """As `trained`, when nothing happens."""
    torch.set_default_dtype(torch.float64)
    try:
        return trained(engine(config, folder, Ranks()), folder, lambda what: None)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    return in_one_process(tmp_path_factory.mktemp("undisturbed"), config_of())


class SlowEnv(PointEnv):
    """Takes so long that a rollout or an evaluation is still under way when it is looked at."""

    def step(self, actions: Tensor) -> Step:
        time.sleep(0.02)
        return super().step(actions)


def create_slow_env(block: EnvConfig, name: EnvName, max_chunk: int, seed: int) -> SlowEnv:
    """As `envs.registry.create_env`, in a process of its own."""
    torch.set_default_dtype(torch.float64)
    return SlowEnv(block.total_num_envs)


@pytest.fixture
def start(machines: Machines, tmp_path: Path) -> Iterator[Callable[..., RayEngine]]:
    started: list[RayEngine] = []

    def one(*overrides: str, algorithm: str = "ppo") -> RayEngine:
        config, makers = config_of(*overrides, algorithm=algorithm), Makers(create_slow_env, create_policy)
        started.append(RayEngine(config, plan(config, machines.resources), machines, config.seed, tmp_path, makers))
        return started[-1]

    yield one
    for engine_ in started:
        engine_.close()


def processes(role: str) -> list[int]:
    """Those of this test that play a role, as `ps` shows them."""
    found = []
    for child in psutil.process_iter(["cmdline"]):
        if " ".join(child.info["cmdline"] or ()).startswith(f"ray::{role} ") and _is_own(child):
            found.append(child.pid)
    return found


def _is_own(child: psutil.Process) -> bool:
    try:
        return os.getpid() in [parent.pid for parent in child.parents()]
    except psutil.NoSuchProcess:
        return False


QUICK = {("actor", "update", signal.SIGKILL)}
CASES = [
    *(
        (role, what, signal.SIGKILL)
        for role in ("env", "rollout", "actor")
        for what in ("rollout", "update", "evaluation", "save")
    ),
    ("env", "rollout", signal.SIGSTOP),
    ("env", "evaluation", signal.SIGSTOP),
    ("rollout", "rollout", signal.SIGSTOP),
    ("rollout", "evaluation", signal.SIGSTOP),
    ("actor", "update", signal.SIGSTOP),
]
IMPATIENT = (
    "runner.process_timeout_s=5",
    *(f"env.{name}.timeouts.{what}_s=15" for name in ("train", "eval") for what in ("startup", "reset")),
)


@pytest.mark.parametrize(
    ("role", "what", "number"), [pytest.param(*case, marks=() if case in QUICK else pytest.mark.full) for case in CASES]
)
def test_a_run_that_loses_a_process_makes_every_update_once(
    start: Callable[..., RayEngine],
    undisturbed: tuple[Any, ...],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    role: str,
    what: str,
    number: signal.Signals,
) -> None:
    struck: list[int] = []

    def strike(now: str) -> None:
        if now == what and not struck:
            (pid,) = processes(role)
            struck.append(pid)
            os.kill(pid, number)

    overrides = IMPATIENT if number == signal.SIGSTOP and role != "env" else ()
    with caplog.at_level(logging.WARNING):
        found = trained(start(*overrides), tmp_path / "checkpoints", strike)
    assert struck
    assert struck[0] not in processes(role)
    assert not overrides or f"No answer of {role} 0" in caplog.text
    torch.testing.assert_close(found, undisturbed, rtol=1e-9, atol=1e-12)
    if what == "rollout" or (what, role) in {("evaluation", "env"), ("evaluation", "rollout"), ("update", "actor")}:
        assert "All processes were started again" in caplog.text, "others are not needed, or not any more"


@pytest.mark.parametrize("update", [pytest.param(STRUCK, marks=pytest.mark.full), UPDATES - 1])
def test_an_update_whose_state_was_lost_is_made_once_more(
    start: Callable[..., RayEngine],
    undisturbed: tuple[Any, ...],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    update: int,
) -> None:
    begin = Snapshots.begin
    struck: list[int] = []

    def strike_first(snapshots: Snapshots, actors: Any, envs: Any, made: int | None, *, is_sharded: bool) -> None:
        if made == update and not struck:
            struck.extend(processes("actor"))
            os.kill(struck[0], signal.SIGKILL)
        begin(snapshots, actors, envs, made, is_sharded=is_sharded)

    monkeypatch.setattr(Snapshots, "begin", strike_first)
    with caplog.at_level(logging.WARNING):
        found = trained(start(), tmp_path / "checkpoints", lambda what: None)
    assert struck
    torch.testing.assert_close(found, undisturbed, rtol=1e-9, atol=1e-12)
    assert f"The state after update {update + 1} was lost with its process" in caplog.text


@pytest.mark.full
@pytest.mark.parametrize(("role", "what"), [("env", "rollout"), ("rollout", "update"), ("actor", "update")])
def test_what_an_algorithm_has_stored_outlives_its_process(
    start: Callable[..., RayEngine], tmp_path: Path, role: str, what: str
) -> None:
    struck: list[int] = []

    def strike(now: str) -> None:
        if now == what and not struck:
            struck.extend(processes(role))
            os.kill(struck[0], signal.SIGKILL)

    found = trained(start(algorithm="sac"), tmp_path / "checkpoints", strike)
    assert struck
    expected = in_one_process(tmp_path / "undisturbed", config_of(algorithm="sac"))
    assert expected[0][STRUCK + 1]["sac/critic_loss"] > 0
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.full
def test_a_process_that_always_dies_ends_the_run_with_its_last_update(
    start: Callable[..., RayEngine], undisturbed: tuple[Any, ...], tmp_path: Path
) -> None:
    one = start("runner.max_restarts=1")
    one.collect(0, lambda: False)
    one.update(0, lambda: False)
    last = new_checkpoint(tmp_path / "before", 1, lambda draft: one.save(draft, 1, {}, export=False))
    struck: set[int] = set()

    def always() -> bool:
        for pid in set(processes("env")) - struck:
            struck.add(pid)
            os.kill(pid, signal.SIGKILL)
        return False

    always()
    with pytest.raises(LostError, match="was lost") as lost:
        one.collect(1, always)
    assert len(struck) == 2
    assert f"env 0 (process {max(struck)}) has died." in "".join(lost.value.__notes__)
    saved = new_checkpoint(tmp_path / "after", 1, lambda draft: one.save(draft, 1, {}, export=False))
    first, second = (torch.load(folder / FULL_WEIGHTS, weights_only=True) for folder in (last, saved))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def create_env_that_dies_once(marker: Path, *block: Any) -> VecEnv:
    """As `create_env`, but for the first time."""
    if not marker.exists():
        marker.touch()
        os.write(2, b"something is wrong with this machine\n")
        os.kill(os.getpid(), signal.SIGKILL)
    return create_env(*block)


@pytest.mark.full
def test_a_process_that_dies_while_it_starts_is_started_again(
    machines: Machines, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    for most in (0, 1):
        config = config_of(f"runner.max_restarts={most}")
        makers = Makers(functools.partial(create_env_that_dies_once, tmp_path / f"marker_{most}"), create_policy)
        placed = plan(config, machines.resources)
        if not most:
            with pytest.raises(LostError) as lost:
                RayEngine(config, placed, machines, config.seed, tmp_path, makers)
            assert "something is wrong with this machine" in "".join(lost.value.__notes__)
            continue
        with (
            caplog.at_level(logging.WARNING),
            contextlib.closing(RayEngine(config, placed, machines, config.seed, tmp_path, makers)) as one,
        ):
            assert one.collect(0, lambda: False).num_steps
        assert "All processes were started again" in caplog.text
        *_, shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Starting processes")]
        assert "3/3" in shown
        assert all(name in shown.partition("ready")[2] for name in ("env 0", "rollout 0", "actor 0"))


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_signal_before_or_in_the_middle_of_a_restart_saves_the_last_update(
    start: Callable[..., RayEngine], tmp_path: Path, number: signal.Signals
) -> None:
    one = start()
    one.collect(0, lambda: False)
    one.update(0, lambda: False)
    asked: list[float] = []

    def stop_after_the_strike() -> bool:
        if not asked:
            (pid,) = processes("rollout")
            os.kill(pid, number)
        asked.append(time.monotonic())
        return one._lost is not None or number == signal.SIGSTOP

    with pytest.raises(InterruptedError):
        one.collect(1, stop_after_the_strike)
    saved = new_checkpoint(tmp_path / "saved", 1, lambda draft: one.save(draft, 1, {}, export=False))
    assert (saved / FULL_WEIGHTS).is_file()
    assert time.monotonic() - asked[0] < 60.0, "30 on a machine that has time"
