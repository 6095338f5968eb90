"""Which process plays which roles, from the configuration and what the machines have; no hardware is needed."""
# ruff: noqa: E501 - one row per placement

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

from regrasp.config.types import changed
from regrasp.engine import placement as placement_module
from regrasp.engine.placement import (
    EnvShare,
    NodeResources,
    Plan,
    Resources,
    ShortageError,
    place,
    plan,
    remarks,
    require_ray,
)
from regrasp.engine.policies import use_device
from regrasp.errors import UserError
from regrasp.experiment import ClusterConfig, ExperimentConfig
from regrasp.experiment.cluster import Placement
from regrasp.experiment.load import load_config

SMALL = Path(__file__).parents[1] / "config" / "small_experiment.yaml"
LAPTOP = Resources((NodeResources((), num_cores=16, memory=16 * 10**9),))


def machines(*num_accelerators: int) -> Resources:
    """Nodes with so many accelerators each."""
    return Resources(tuple(NodeResources((80 * 10**9,) * count, 64, 10**12) for count in num_accelerators))


ONE, TWO, EIGHT, TWO_NODES = machines(1), machines(2), machines(8), machines(4, 4)
TWO_LAPTOPS = Resources(LAPTOP.nodes * 2)
ALL_OF_TWO_NODES = "cuda:0 cuda:1 cuda:2 cuda:3 1/cuda:0 1/cuda:1 1/cuda:2 1/cuda:3"


def placed(placement: Mapping[str, int | str], resources: Resources, *overrides: str) -> ExperimentConfig:
    """A small experiment with this placement."""
    cluster = ClusterConfig(len(resources.nodes), dict(placement), "auto" if len(resources.nodes) > 1 else None)
    assert not list(cluster.problems())
    sizes = ["env.train.total_num_envs=24", "env.eval.total_num_envs=24"]
    return changed(load_config(str(SMALL), [*sizes, *overrides]).config, "cluster", cluster)


def planned(placement: Mapping[str, int | str], resources: Resources, *overrides: str) -> Plan:
    return plan(placed(placement, resources, *overrides), resources)


def remarked(placement: Mapping[str, int | str], resources: Resources, *overrides: str) -> tuple[str, ...]:
    config = placed(placement, resources, *overrides)
    return remarks(config, place(config, resources), resources)


def lines(found: Plan) -> list[str]:
    """The roles of every kind of process, and where its ranks are."""
    places: dict[str, str] = {}
    for process in found.processes:
        kind, _, number = process.name.rpartition(" ")
        assert dict(process.index) == dict.fromkeys(kind.split("+"), int(number))
        places[kind] = f"{places.get(kind, kind)} {f'{process.node}/' if process.node else ''}{process.device}"
    return [*places.values()]


ROLES = "actor,env,rollout"
GRPO = ["algorithm.adv_type=grpo", "algorithm.loss_type=actor"]


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


@pytest.mark.parametrize(
    ("placement", "words"),
    [
        ({}, "Nothing is said of actor and env and rollout"),
        ({"actor,rollout": 0}, "Nothing is said of env"),
        ({ROLES: 0, "env": 1}, "The role env is placed twice"),
        ({"actor,env,env,rollout": 0}, "The role env is placed twice"),
        ({"actor,env,rollout,reward": 0}, "Unknown role"),
        ({"actor,env,rollout,": 0}, "Unknown role"),
        *(
            ({ROLES: value}, "Not a placement")
            for value in ("", "ALL", "0;1", "0-", "-1", -1, "0,,1", "0.5", "a", "0:all")
        ),
        *(({ROLES: value}, "Not a range") for value in ("3-0", "0-99999999999", 4096)),
        *(({ROLES: value}, "Numbers that do not rise") for value in ("0,0", "1,0", "0-2,2", "0-2,1")),
        *(({ROLES: value}, "Processes do not divide") for value in ("0-1:0-2", "0-3:0-1")),
        *(({ROLES: value}, "Process numbers do not go on from") for value in ("0:1-2", "0-1:0-1,2:3")),
    ],
)
def test_what_is_no_placement(placement: Mapping[str, int | str], words: str) -> None:
    (error,) = ClusterConfig(component_placement=dict(placement)).problems()
    assert error.problem.startswith(words)
    assert error.key == "cluster.component_placement"
    assert error.expected
    assert error.fix


@pytest.mark.parametrize(
    ("group", "num_nodes", "words"),
    [
        ("mine", 1, None),
        ("cluster", 2, None),
        ("mine", 2, "groups of machines"),
        (("cluster", "mine"), 2, "groups of machines"),
        ("node", 1, "machines instead of accelerators"),
    ],
)
def test_node_groups(group: str | tuple[str, ...], num_nodes: int, words: str | None) -> None:
    placement = {ROLES: Placement("0-1", group)}
    found = list(ClusterConfig(num_nodes, dict(placement), "auto").problems())
    assert [words in error.problem for error in found if words] == ([True] if words else [])
    assert len(found) == bool(words)


def test_an_override_replaces_the_placement_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "placed.yaml"
    file.write_text(f"cluster:\n  component_placement:\n    {ROLES}: all\n{SMALL.read_text()}")
    apart = "cluster.component_placement={actor:0,env:1-2,rollout:'3,5'}"
    config = load_config(str(file), [apart]).config
    assert config.cluster.numbers() == {"actor": (0,), "env": (1, 2), "rollout": (3, 5)}
    assert load_config(str(file), ["~cluster.component_placement"]).config.cluster == ClusterConfig()


HYBRID = "actor.fsdp_config.sharding_strategy=hybrid_shard"
APART = {"actor": 0, "env": 1, "rollout": 2}


@pytest.mark.parametrize(
    ("placement", "resources", "overrides", "key", "words"),
    [
        ({ROLES: "0-3"}, TWO, [], "cluster.component_placement", "accelerators 0-3; node 0 has 2, and 2-3 are missing"),
        ({**APART, "rollout": "1,9"}, TWO_NODES, [], "cluster.component_placement", "accelerators 0-1, 9; node 0 has 4, node 1 has 4, and 9 is missing"),
        ({ROLES: "0-47"}, LAPTOP, [], "cluster.component_placement", "48 processes need at least"),
        ({"actor,rollout": "0:0-1", "env": 1}, TWO, [], "cluster.component_placement", "Two ranks of the actor on one accelerator"),
        ({**APART, "env": "1-2", "rollout": "3-5"}, LAPTOP, [], "cluster.component_placement", "2 env workers and 3 rollout workers do not divide"),
        ({ROLES: "0-2"}, LAPTOP, ["env.train.total_num_envs=8"], "env.train.total_num_envs", "over 3 rollout and 3 env workers"),
        (APART, LAPTOP, ["env.train.total_num_envs=9", "rollout.pipeline_stage_num=2"], "env.train.total_num_envs", "of 2 stages each"),
        ({ROLES: "0-5"}, LAPTOP, ["algorithm.group_size=8", *GRPO], "algorithm.group_size", "A group would be split"),
        ({ROLES: "0-5"}, LAPTOP, [HYBRID, "actor.fsdp_config.fsdp_size=4"], "actor.fsdp_config.fsdp_size", "do not divide into groups"),
        ({ROLES: "0-1"}, LAPTOP, ["runner.max_staleness=1"], "runner.max_staleness", "cannot overlap the update"),
        ({ROLES: "0"}, LAPTOP, ["runner.max_staleness=1", "actor.model.compile=true"], "actor.model.compile", "by two threads"),
        ({ROLES: "0"}, TWO, ["runner.max_staleness=1", "actor.model.compile=graphs"], "actor.model.compile", "by two threads"),
        ({"actor,rollout": "all", "env": 1}, LAPTOP, ["runner.max_staleness=1"], "runner.max_staleness", "cannot overlap the update"),
    ],
)  # fmt: skip
def test_a_plan_that_cannot_be_made(
    placement: Mapping[str, int | str], resources: Resources, overrides: Sequence[str], key: str, words: str
) -> None:
    with pytest.raises(UserError) as caught:
        planned(placement, resources, *overrides)
    assert caught.value.key == key
    assert words in caught.value.problem
    assert caught.value.fix


def test_more_machines_than_there_are() -> None:
    config = load_config(str(SMALL), ["cluster.num_nodes=2", "cluster.address=auto"]).config
    with pytest.raises(ShortageError) as caught:
        plan(config, LAPTOP)
    assert caught.value.key == "cluster.num_nodes"


def test_an_older_policy_acts_where_it_is_apart() -> None:
    assert planned(APART, LAPTOP, "runner.max_staleness=1").layout == "disaggregated"


def test_without_a_gpu_there_are_no_graphs_that_two_threads_could_replay() -> None:
    assert planned({ROLES: "0"}, LAPTOP, "runner.max_staleness=1", "actor.model.compile=graphs").is_local


@pytest.mark.parametrize("placement", [{ROLES: "0-11"}, {"actor": 2, "env,rollout": "0-1"}])
@pytest.mark.parametrize("resources", [ONE, LAPTOP, TWO_LAPTOPS], ids=["GPU", "CPU", "CPUs"])
def test_machines_that_are_large_enough(placement: Mapping[str, int | str], resources: Resources) -> None:
    cluster = ClusterConfig(len(resources.nodes), dict(placement), "auto")
    enough = resources.enough_for(cluster)
    assert len(planned(placement, enough).processes) in (12, 3)


def test_a_run_on_one_accelerator_is_on_the_one_that_is_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    found = planned({ROLES: 1}, TWO)
    assert found.is_local
    assert [use_device(process.device) for process in found.processes] == current == [torch.device("cuda:1")]
    assert use_device("cpu") == torch.device("cpu")


def test_processes_that_outnumber_cores_are_told() -> None:
    few = Resources((NodeResources((), 2, 10**12),))
    assert remarked({ROLES: "0-1"}, few) == ()
    assert remarked({ROLES: "0-2"}, few) == ("Node 0 has 2 cores for 3 processes, which wait for each other.",)


def test_a_single_process_that_trains_offloads_nothing() -> None:
    sharded, offloaded = "actor.fsdp_config.sharding_strategy=full_shard", "actor.fsdp_config.cpu_offload=true"
    (remark,) = remarked({ROLES: 0}, ONE, sharded, offloaded)
    assert remark.startswith("actor.fsdp_config.cpu_offload has no effect")
    assert remarked({ROLES: 0}, ONE, sharded) == remarked({ROLES: "0-1"}, TWO, sharded, offloaded) == ()


def test_a_plan_of_several_processes_needs_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement_module, "find_spec", lambda _: None)
    require_ray(planned({ROLES: "all"}, LAPTOP).processes)
    with pytest.raises(UserError, match=r"regrasp\[ray\]") as caught:
        require_ray(planned({ROLES: "all"}, TWO).processes)
    assert (caught.value.fix or "").startswith('pip install "ray')


@pytest.mark.parametrize(("num_rollouts", "num_workers"), [(1, 1), (1, 3), (2, 2), (2, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize("stages", [1, 2])
def test_every_environment_is_one_workers_and_one_rollouts(num_rollouts: int, num_workers: int, stages: int) -> None:
    placement = {"actor": 9, "env": f"10-{9 + num_workers}", "rollout": f"0-{num_rollouts - 1}"}
    found = planned(placement, LAPTOP, f"rollout.pipeline_stage_num={stages}")
    shares = found.env_shares
    assert [number for share in shares for number in range(share.start, share.stop)] == list(range(24))
    assert len({share.stop - share.start for share in shares}) == 1
    assert [(share.rollout, share.stage) for share in shares] == sorted(
        (share.rollout, share.stage) for share in shares
    )
    assert {share.worker for share in shares} == set(range(num_workers))
    pairs = {(share.worker, share.rollout) for share in shares}
    assert len(pairs) == max(num_rollouts, num_workers)
    assert found.num_eval_envs * len(pairs) >= 24 > (found.num_eval_envs - 1) * len(pairs)


def test_a_stage_is_one_range_and_its_workers_have_parts_of_it() -> None:
    stages = ["env.train.total_num_envs=8", "rollout.pipeline_stage_num=2"]
    assert planned({"actor": 0, "env": "1-2", "rollout": 3}, LAPTOP, *stages).env_shares == (
        EnvShare(worker=0, rollout=0, stage=0, start=0, stop=2),
        EnvShare(worker=1, rollout=0, stage=0, start=2, stop=4),
        EnvShare(worker=0, rollout=0, stage=1, start=4, stop=6),
        EnvShare(worker=1, rollout=0, stage=1, start=6, stop=8),
    )
