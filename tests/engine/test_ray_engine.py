"""Layouts of several processes do what one process does."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_toys import ALGORITHMS, NUM_ENVS, STORING, UPDATES, create_env, create_policy, engine, experiment

from regrasp.engine.base import Engine
from regrasp.engine.placement import plan
from regrasp.engine.ray.cluster import Machines
from regrasp.engine.ray.engine import RayEngine
from regrasp.engine.ray.processes import Makers, Processes
from regrasp.experiment import ClusterConfig, ExperimentConfig
from regrasp.experiment.cluster import Placement
from regrasp.ranks import Ranks

pytestmark = pytest.mark.full  # by default, test_ray_failures.py shows it of one layout
LAYOUTS: dict[str, dict[str, int | str | Placement]] = {
    "two_colocated": {"actor,env,rollout": "0-1"},
    "disaggregated": {"env": 0, "rollout": 1, "actor": 2},
    "hybrid": {"env": "0-1", "rollout,actor": 2},
    "many_actors": {"env,rollout": 0, "actor": "1-2"},
    "many_rollouts": {"env": 0, "rollout": "1-2", "actor": 3},
}


def trained(one: Engine, updates: int = UPDATES) -> tuple[list[dict[str, Any]], list[list[float]]]:
    lines = []
    for update in range(updates):
        collected = one.collect(update, lambda: False)
        metrics = one.update(update, lambda: False)
        lines.append({**collected.metrics, **metrics, "steps": collected.num_steps, "flat": collected.is_flat})
    return lines, [[result.total_reward, result.length] for result in one.evaluate(NUM_ENVS)]


ONE_ACTOR = ("disaggregated", "hybrid", "many_rollouts")
CASES = [
    (layout, algorithm) for layout in LAYOUTS for algorithm in (*ALGORITHMS, *(STORING if layout in ONE_ACTOR else ()))
]


@pytest.mark.parametrize(("layout", "algorithm"), CASES)
def test_ten_updates_are_those_of_one_process(machines: Machines, tmp_path: Path, layout: str, algorithm: str) -> None:
    config = experiment(algorithm, "runner.val_check_interval=1")
    config = dataclasses.replace(config, cluster=ClusterConfig(component_placement=LAYOUTS[layout]))
    torch.set_default_dtype(torch.float64)
    try:
        expected = trained(engine(config, tmp_path, Ranks()))
    finally:
        torch.set_default_dtype(torch.float32)
    several = RayEngine(
        config, plan(config, machines.resources), machines, config.seed, tmp_path, Makers(create_env, create_policy)
    )
    try:
        found = trained(several)
    finally:
        several.close()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    if algorithm in STORING:
        assert expected[0][-1]["sac/critic_loss"] > 0


def test_every_start_meets_at_a_place_of_its_own(machines: Machines, tmp_path: Path) -> None:
    config = dataclasses.replace(experiment("ppo"), cluster=ClusterConfig(component_placement=LAYOUTS["two_colocated"]))
    placed, makers = plan(config, machines.resources), Makers(create_env, create_policy)
    runs = [Processes(config, placed, machines, 0, tmp_path, makers) for _ in range(2)]
    places = [Path(one._new_meeting().removeprefix("file://")) for one in (*runs, *runs)]
    assert len(set(places)) == len(places)
    assert {place.parent for place in places} == {machines.folder}


def stale(config: ExperimentConfig, folder: Path, updates: int) -> tuple[list[dict[str, Any]], list[list[float]]]:
    """As `trained`, with rollouts that act with the weights of the update before the last."""
    config = dataclasses.replace(config, runner=dataclasses.replace(config.runner, max_staleness=0))
    acts, trains = (engine(config, folder, Ranks()) for _ in range(2))
    versions = [copy.deepcopy(trains.policy.state_dict())]
    lines = []
    for update in range(updates):
        acts.policy.load_state_dict(versions[max(0, update - 1)])
        prepared = trains.training.prepare(acts.rollouts.collect(update, lambda: False).decisions, update)
        metrics = trains.update(update, lambda: False)
        acts.rollouts.updated()
        versions.append(copy.deepcopy(trains.policy.state_dict()))
        lines.append({**prepared.metrics, **metrics, "steps": prepared.num_steps, "flat": prepared.is_flat})
    acts.policy.load_state_dict(versions[-1])
    acts.rollouts.collect(updates, lambda: False)  # the one that is under way when the run evaluates
    return lines, [[result.total_reward, result.length] for result in acts.evaluate(NUM_ENVS)]


def test_a_rollout_that_overlaps_the_update_acts_with_the_weights_before_it(machines: Machines, tmp_path: Path) -> None:
    config = experiment("ppo", "runner.val_check_interval=1", "runner.max_staleness=1")
    config = dataclasses.replace(config, cluster=ClusterConfig(component_placement=LAYOUTS["disaggregated"]))
    placed = plan(config, machines.resources)
    makers = Makers(create_env, create_policy)
    with contextlib.closing(RayEngine(config, placed, machines, config.seed, tmp_path, makers)) as overlapping:
        lines, episodes = trained(overlapping, 3)
    torch.set_default_dtype(torch.float64)
    try:
        expected = stale(config, tmp_path, 3)
    finally:
        torch.set_default_dtype(torch.float32)
    assert lines[1]["actor/first_ratio_error"] > 0
    torch.testing.assert_close((lines, episodes), expected, rtol=1e-9, atol=1e-12)
