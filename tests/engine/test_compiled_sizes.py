"""What a process compiles: the batches that it decides and trains on, whichever engine runs it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_toys import PointEnv, create_env, create_policy

from regrasp.engine.compiling import compile_as_configured
from regrasp.engine.local import LocalEngine
from regrasp.engine.placement import NodeResources, Resources, plan
from regrasp.engine.ray.cluster import Machines
from regrasp.engine.ray.engine import RayEngine
from regrasp.engine.ray.processes import Makers
from regrasp.engine.ray.worker import Assignment, Worker
from regrasp.errors import UserError
from regrasp.experiment import ClusterConfig, ExperimentConfig
from regrasp.experiment.load import load_config
from regrasp.learner.compilation import compile_policy
from regrasp.learner.precision import ActingPolicy
from regrasp.models.contract import Policy
from rl_toys import groot_policy

CPU = torch.device("cpu")
BLOCK = 32
"""Rows that an evaluation decides at once on a CPU, at the least."""
MICRO = 5


def experiment(*overrides: str) -> ExperimentConfig:
    sizes = ("env.train.total_num_envs=12", f"actor.micro_batch_size={MICRO}", "actor.global_batch_size=15")
    return load_config("pick_cube_ppo_groot", ["actor.model.compile=true", *sizes, *overrides]).config


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """The batch sizes of each policy that is compiled."""
    sizes: list[set[int]] = []

    def traced(policy: Policy, batch_sizes: Collection[int], device: torch.device, **named: Any) -> None:
        sizes.append(set(batch_sizes))
        compile_policy(policy, batch_sizes, device, backend="eager", **named)

    monkeypatch.setattr("regrasp.engine.compiling.compile_policy", traced)
    torch._dynamo.reset()
    return sizes


def local(config: ExperimentConfig, policy: Policy, stages: list[PointEnv], eval_env: PointEnv | None) -> None:
    LocalEngine(config, policy, stages, 0, CPU, Path("never-written"), eval_env)


def ray_worker(config: ExperimentConfig, policy: Policy, stages: list[PointEnv], eval_env: PointEnv | None) -> None:
    """The only process of a plan, without Ray around it."""
    placed = plan(config, Resources((NodeResources((), 1, 10**10),)))
    worker = Worker(
        Assignment(
            config=config,
            seed=0,
            run_dir=Path("never-written"),
            plan=placed,
            process=placed.processes[0],
            num_threads=torch.get_num_threads(),
            create_policy=lambda *_: policy,
            meeting="",
            folder=Path.cwd(),
            address="127.0.0.1",
        )
    )
    train, _, evaluation = worker.create_envs([lambda env=env: env for env in stages], eval_env and (lambda: eval_env))
    worker.start(train, evaluation)


@pytest.mark.parametrize("make", [local, ray_worker])
@pytest.mark.parametrize(
    ("precision", "evaluates", "expected"),
    [
        ("fp32", True, [{3, MICRO, BLOCK}]),
        ("fp32", False, [{3, MICRO}]),
        ("bf16", True, [{3, BLOCK}, {MICRO}]),
    ],
)
def test_an_engine_compiles_for_the_batches_that_it_sees(
    compiled: list[set[int]], make: Any, precision: str, evaluates: bool, expected: list[set[int]]
) -> None:
    config = experiment(f"actor.model.precision={precision}")
    policy = groot_policy(trainable=config.actor.model.trainable, precision=precision)
    make(config, policy, [PointEnv(3) for _ in range(4)], PointEnv(2) if evaluates else None)
    assert compiled == expected


def test_roles_apart_compile_their_own_batches(compiled: list[set[int]]) -> None:
    config = experiment()
    policy = groot_policy()
    acting = ActingPolicy(policy, config.actor.model, CPU)
    compile_as_configured(config, CPU, acting=acting, stages=[PointEnv(6)])
    trains = LocalEngine(experiment("actor.model.compile=false"), groot_policy(), [PointEnv(12)], 0, CPU, Path())
    compile_as_configured(config, CPU, learner=trains.learner)
    assert compiled == [{6}, {MICRO}]


@pytest.mark.full
def test_a_ray_run_refuses_a_policy_that_has_nothing_to_compile(machines: Machines, tmp_path: Path) -> None:
    config = load_config("pick_cube_ppo_mlp", ["actor.model.compile=true", "env.train.total_num_envs=4"]).config
    config = dataclasses.replace(config, cluster=ClusterConfig(component_placement={"env": 0, "rollout,actor": 1}))
    with pytest.raises(UserError, match="nothing to compile"):
        RayEngine(config, plan(config, machines.resources), machines, 0, tmp_path, Makers(create_env, create_policy))


def test_on_a_cpu_graphs_change_nothing(compiled: list[set[int]]) -> None:
    config = experiment("actor.model.compile=graphs")
    policy = groot_policy()
    methods = {name: getattr(policy, name) for name in policy.METHODS}
    local(config, policy, [PointEnv(12)], None)
    assert not compiled
    assert {name: getattr(policy, name) for name in policy.METHODS} == methods
