"""Which process plays which roles, from the configuration and what the machines have; no hardware is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from regrasp.config.types import changed
from regrasp.engine.placement import EnvShare, NodeResources, Plan, Resources, plan
from regrasp.errors import UserError
from regrasp.experiment import ClusterConfig
from regrasp.experiment.load import load_config

SMALL = Path(__file__).parents[1] / "config" / "small_experiment.yaml"
LAPTOP = Resources((NodeResources((), num_cores=16, memory=16 * 10**9),))


def machines(*num_accelerators: int) -> Resources:
    """Nodes with so many accelerators each."""
    return Resources(tuple(NodeResources((80 * 10**9,) * count, 64, 10**12) for count in num_accelerators))


ONE, TWO, EIGHT, TWO_NODES = machines(1), machines(2), machines(8), machines(4, 4)


def planned(placement: Mapping[str, int | str], resources: Resources, *overrides: str) -> Plan:
    cluster = ClusterConfig(len(resources.nodes), dict(placement), "auto" if len(resources.nodes) > 1 else None)
    assert not list(cluster.problems())
    return plan(changed(load_config(str(SMALL), overrides).config, "cluster", cluster), resources)


def lines(found: Plan) -> list[str]:
    return [f"{process.name}: {process.node} {process.device}" for process in found.processes]


@pytest.mark.parametrize(
    ("placement", "resources", "layout", "processes"),
    [
        ({"actor,env,rollout": "all"}, LAPTOP, "colocated", ["actor+env+rollout 0: 0 cpu"]),
        ({"actor,env,rollout": "all"}, ONE, "colocated", ["actor+env+rollout 0: 0 cuda:0"]),
        ({"actor": "all", "env": 0, "rollout": "0-0"}, ONE, "colocated", ["actor+env+rollout 0: 0 cuda:0"]),
        ({"rollout, actor, env": "0-1"}, LAPTOP, "colocated", ["actor+env+rollout 0: 0 cpu", "actor+env+rollout 1: 0 cpu"]),
        ({"actor,env,rollout": "all"}, TWO, "colocated", ["actor+env+rollout 0: 0 cuda:0", "actor+env+rollout 1: 0 cuda:1"]),
        ({"actor,rollout": 1, "env": 0}, TWO, "hybrid", ["actor+rollout 0: 0 cuda:1", "env 0: 0 cuda:0"]),
        ({"env,rollout": 0, "actor": 1}, LAPTOP, "hybrid", ["actor 0: 0 cpu", "env+rollout 0: 0 cpu"]),
        ({"actor": 2, "env": 0, "rollout": 1}, LAPTOP, "disaggregated", ["actor 0: 0 cpu", "env 0: 0 cpu", "rollout 0: 0 cpu"]),
        ({"actor": "2,5", "env": 0, "rollout": 7}, EIGHT, "disaggregated", ["actor 0: 0 cuda:2", "actor 1: 0 cuda:5", "env 0: 0 cuda:0", "rollout 0: 0 cuda:7"]),
        ({"actor": "4-5", "env,rollout": "3,6"}, TWO_NODES, "hybrid", ["actor 0: 1 cuda:0", "actor 1: 1 cuda:1", "env+rollout 0: 0 cuda:3", "env+rollout 1: 1 cuda:2"]),
        ({"actor": 0, "env": "0:0-1", "rollout": 1}, TWO, "disaggregated", ["actor 0: 0 cuda:0", "env 0: 0 cuda:0", "env 1: 0 cuda:0", "rollout 0: 0 cuda:1"]),
    ],
)  # fmt: skip
def test_processes(
    placement: Mapping[str, int | str], resources: Resources, layout: str, processes: Sequence[str]
) -> None:
    found = planned(placement, resources)
    assert (lines(found), found.layout) == (processes, layout)
    assert found.is_local == (len(processes) == 1)


def test_impossible_placement_names_what_is_missing() -> None:
    with pytest.raises(UserError, match=r"needs accelerators 0-3; node 0 has 2, and 2-3 are missing"):
        planned({"actor,env,rollout": "0-3"}, TWO)


def test_shares_of_env_workers() -> None:
    found = planned(
        {"actor": 0, "env": "1-2", "rollout": 3}, LAPTOP, "env.train.total_num_envs=8", "rollout.pipeline_stage_num=2"
    )
    assert found.env_shares == (
        EnvShare(worker=0, rollout=0, stage=0, start=0, stop=2),
        EnvShare(worker=1, rollout=0, stage=0, start=2, stop=4),
        EnvShare(worker=0, rollout=0, stage=1, start=4, stop=6),
        EnvShare(worker=1, rollout=0, stage=1, start=6, stop=8),
    )
