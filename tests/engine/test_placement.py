"""Which process plays which roles, from the configuration and what the machines have; no hardware is needed."""
# ruff: noqa: E501 - one row per placement

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
TWO_LAPTOPS = Resources(LAPTOP.nodes * 2)
ALL_OF_TWO_NODES = "cuda:0 cuda:1 cuda:2 cuda:3 1/cuda:0 1/cuda:1 1/cuda:2 1/cuda:3"


def planned(placement: Mapping[str, int | str], resources: Resources, *overrides: str) -> Plan:
    cluster = ClusterConfig(len(resources.nodes), dict(placement), "auto" if len(resources.nodes) > 1 else None)
    assert not list(cluster.problems())
    return plan(
        changed(load_config(str(SMALL), ["env.train.total_num_envs=24", *overrides]).config, "cluster", cluster),
        resources,
    )


def lines(found: Plan) -> list[str]:
    """The roles of every kind of process, and where its ranks are."""
    places: dict[str, str] = {}
    for process in found.processes:
        kind, _, number = process.name.rpartition(" ")
        assert dict(process.index) == dict.fromkeys(kind.split("+"), int(number))
        places[kind] = f"{places.get(kind, kind)} {f'{process.node}/' if process.node else ''}{process.device}"
    return [*places.values()]


ROLES = "actor,env,rollout"


@pytest.mark.parametrize(
    ("placement", "resources", "layout", "processes"),
    [
        ({ROLES: "all"}, LAPTOP, "colocated", ["actor+env+rollout cpu"]),
        ({ROLES: "all"}, ONE, "colocated", ["actor+env+rollout cuda:0"]),
        ({"actor": "all", "env": 0, "rollout": "0-0"}, ONE, "colocated", ["actor+env+rollout cuda:0"]),
        ({"rollout, actor, env": "0-1"}, LAPTOP, "colocated", ["actor+env+rollout cpu cpu"]),
        ({ROLES: "all"}, TWO, "colocated", ["actor+env+rollout cuda:0 cuda:1"]),
        ({ROLES: "all"}, TWO_NODES, "colocated", [f"actor+env+rollout {ALL_OF_TWO_NODES}"]),
        ({ROLES: "all"}, TWO_LAPTOPS, "colocated", ["actor+env+rollout cpu 1/cpu"]),
        ({ROLES: "0-3"}, TWO_LAPTOPS, "colocated", ["actor+env+rollout cpu cpu 1/cpu 1/cpu"]),
        ({"actor,rollout": 1, "env": 0}, TWO, "hybrid", ["actor+rollout cuda:1", "env cuda:0"]),
        ({"env,rollout": 0, "actor": 1}, LAPTOP, "hybrid", ["actor cpu", "env+rollout cpu"]),
        ({"actor": 2, "env": 0, "rollout": 1}, LAPTOP, "disaggregated", ["actor cpu", "env cpu", "rollout cpu"]),
        ({"actor": "2,5", "env": 0, "rollout": 7}, EIGHT, "disaggregated", ["actor cuda:2 cuda:5", "env cuda:0", "rollout cuda:7"]),
        ({"actor": "all", "env": "0-3", "rollout": "4-7"}, TWO_NODES, "disaggregated", [
            f"actor {ALL_OF_TWO_NODES}", "env cuda:0 cuda:1 cuda:2 cuda:3", "rollout 1/cuda:0 1/cuda:1 1/cuda:2 1/cuda:3",
        ]),
        ({"actor": "4-5", "env,rollout": "3,6"}, TWO_NODES, "hybrid", ["actor 1/cuda:0 1/cuda:1", "env+rollout cuda:3 1/cuda:2"]),
        ({"actor": 0, "env": "0:0-1", "rollout": 1}, TWO, "disaggregated", ["actor cuda:0", "env cuda:0 cuda:0", "rollout cuda:1"]),
        ({ROLES: "0-1:0-3,2:4-5"}, LAPTOP, "colocated", ["actor+env+rollout cpu cpu cpu cpu cpu cpu"]),
    ],
)  # fmt: skip
def test_processes(
    placement: Mapping[str, int | str], resources: Resources, layout: str, processes: Sequence[str]
) -> None:
    found = planned(placement, resources)
    assert (lines(found), found.layout) == (processes, layout)
    assert found.is_local == (len(found.processes) == 1)


def test_impossible_placement_names_what_is_missing() -> None:
    with pytest.raises(UserError, match=r"needs accelerators 0-3; node 0 has 2, and 2-3 are missing"):
        planned({ROLES: "0-3"}, TWO)


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
