"""Runs on several machines: nodes of a Ray cluster that are simulated on this one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cluster_toys import cluster
from rank_toys import ALGORITHMS, create_env, create_policy, engine, experiment
from test_ray_engine import LAYOUTS, trained

from regrasp.engine.placement import plan
from regrasp.engine.ray.cluster import Machines, connected
from regrasp.engine.ray.engine import RayEngine
from regrasp.engine.ray.nodes import require_room, require_shared
from regrasp.engine.ray.processes import Makers
from regrasp.errors import UserError
from regrasp.experiment import ClusterConfig
from regrasp.ranks import Ranks

CASES = [pytest.param(layout, algorithm, marks=pytest.mark.full) for layout in LAYOUTS for algorithm in ALGORITHMS]


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Machines]:
    with cluster(2) as address, connected(address) as found:
        yield found


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "algorithm"), CASES)
def test_two_nodes_do_what_one_process_does(two_nodes: Machines, tmp_path: Path, layout: str, algorithm: str) -> None:
    config = experiment(algorithm, "runner.val_check_interval=1")
    placed_on = ClusterConfig(num_nodes=2, address="auto", component_placement=LAYOUTS[layout])
    config = dataclasses.replace(config, cluster=placed_on)
    placed = plan(config, two_nodes.resources)
    assert {process.node for process in placed.processes} == {0, 1}
    torch.set_default_dtype(torch.float64)
    try:
        expected = trained(engine(config, tmp_path, Ranks()))
    finally:
        torch.set_default_dtype(torch.float32)
    several = RayEngine(config, placed, two_nodes, config.seed, tmp_path, Makers(create_env, create_policy))
    try:
        found = trained(several)
    finally:
        several.close()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.full
def test_what_a_machine_does_not_see_or_have_is_said_before_anything_starts(
    two_nodes: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = experiment("ppo")
    cluster_of_two = ClusterConfig(num_nodes=2, address="auto", component_placement=LAYOUTS["disaggregated"])
    placed = plan(dataclasses.replace(config, cluster=cluster_of_two), two_nodes.resources)
    require_shared(two_nodes, placed, tmp_path, {"actor.model.model_path": tmp_path})
    require_room(two_nodes, placed, config)
    monkeypatch.setattr("regrasp.engine.ray.nodes._LOOK_S", 0.1)
    address = two_nodes.addresses[0]
    with pytest.raises(UserError, match=f"The machine {address} of the Ray cluster does not have") as refused:
        require_shared(two_nodes, placed, tmp_path, {"actor.model.model_path": tmp_path / "mine"})
    assert (refused.value.key, refused.value.file) == ("actor.model.model_path", str(tmp_path / "mine"))
    assert not list(tmp_path.iterdir())
    many = dataclasses.replace(config.env.train, total_num_envs=10**7)
    config = dataclasses.replace(config, env=dataclasses.replace(config.env, train=many), cluster=cluster_of_two)
    with pytest.raises(UserError, match=f"is too small on {address}: ") as refused:
        require_room(two_nodes, plan(config, two_nodes.resources), config)
    assert refused.value.key == "env.train.total_num_envs"
