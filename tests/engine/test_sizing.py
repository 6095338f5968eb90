"""What a dry run says of the processes of a run, and what becomes of a placement that cannot be met."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from regrasp.cli.main import main
from regrasp.config.types import changed
from regrasp.engine.memory import ModelMemory, PolicyMemory
from regrasp.engine.placement import NodeResources, Resources, plan
from regrasp.engine.sizing import Sizing
from regrasp.envs.registry import preflight
from regrasp.experiment import ClusterConfig, ExperimentConfig
from regrasp.experiment.batches import num_samples
from regrasp.experiment.load import load_config
from regrasp.models.mlp.policy import MlpPolicy

MIB = 2**20
MODEL = ModelMemory(
    inputs=None,
    policy=PolicyMemory(
        num_parameters=30 * MIB,
        num_trained=10 * MIB,
        weights=80 * MIB,
        training=140 * MIB,
        half_copy=20 * MIB,
        acting=5 * MIB,
        start=0,
    ),
    stored=MIB,
)
"""20 M frozen weights in bfloat16 and 10 M trained ones in float32."""
LAPTOP = Resources((NodeResources((), num_cores=8, memory=16 * 2**30),))
TWO = Resources((NodeResources((2**30, 80 * 2**30), 8, 16 * 2**30),))


def experiment(**placement: int | str) -> ExperimentConfig:
    names = {name.replace("_", ","): value for name, value in placement.items()}
    config = load_config("pick_cube_ppo_groot", ["rollout.pipeline_stage_num=2"]).config
    return changed(config, "cluster", ClusterConfig(component_placement=dict(names)))


def sizing(config: ExperimentConfig, resources: Resources, model: ModelMemory | None = MODEL) -> Sizing:
    specs = {name: preflight(env, name, config.actor.model.action_dim) for name, env in vars(config.env).items()}
    return Sizing(plan(config, resources), config, resources, specs, model)


def test_one_process_is_one_line() -> None:
    assert sizing(experiment(actor_env_rollout="all"), LAPTOP).lines() == ["processes: one with all roles, on cpu"]


def test_what_each_role_holds_of_the_policy() -> None:
    apart, config = experiment(actor=0, env=1, rollout=2), experiment(actor_env_rollout="0-1")
    kept = num_samples(config) * MIB
    sizes = {process.name: sizing(apart, LAPTOP).policy_bytes(process) for process in plan(apart, LAPTOP).processes}
    assert sizes == {
        "actor 0": (80 + 140 + 20) * MIB + kept,
        "env 0": 0,
        "rollout 0": (80 + 20 + 5) * MIB,  # it receives float32, and acts with bfloat16
    }
    for process in plan(config, LAPTOP).processes:
        assert sizing(config, LAPTOP).policy_bytes(process) == (80 + 140 + 20 + 5) * MIB + kept // 2


def test_the_lines_of_several_processes() -> None:
    lines = sizing(experiment(actor=0, env="1-2", rollout=3), LAPTOP).lines()
    title, actor, envs, rollout, host, largest, acts, learns = lines
    assert title == "processes: 4, disaggregated: 1 actor, 2 env, 1 rollout"
    assert actor.startswith("  actor 0: node 0, cpu; policy 1.73 GiB")
    assert envs.startswith("  env 0-1: node 0, cpu; environments 64 of env.train and 64 of env.eval, about ")
    assert rollout == "  rollout 0: node 0, cpu; policy 0.10 GiB"
    assert host.startswith("policies in host memory of node 0: 1.84 GiB of 16.00 GiB, which fits")
    assert largest.startswith("the largest of them on an accelerator of its own: 1.73 GiB of 80.00 GiB, which fits")
    assert acts == "every rollout: 1536 decisions in 128 environments, which take turns in 2 stages"
    assert learns == "every actor: about 512 samples (1 x 512) of each minibatch of 512"


def test_processes_that_are_alike_share_a_line() -> None:
    gpus = NodeResources((80 * 2**30,) * 8, 64, 512 * 2**30)
    many = Resources((gpus,) * 15 + (dataclasses.replace(gpus, accelerators=(80 * 2**30,) * 4),))
    config = experiment(actor_rollout="0-119", env="120-123")
    config = dataclasses.replace(config, cluster=dataclasses.replace(config.cluster, num_nodes=16, address="auto"))
    lines = sizing(changed(config, "env.train.total_num_envs", 120 * 64), many).lines()
    assert [line.partition(";")[0] for line in lines if line.startswith("  ")] == [
        "  actor+rollout 0-119: nodes 0-14, cuda:0-7",
        "  env 0-3: node 15, cuda:0-3",
    ]
    policies = [line.partition(":")[0] for line in lines if line.startswith("policies")]
    assert policies == ["policies in cuda"]
    assert "cuda:0-7 of nodes 0-14: " in "".join(lines)
    assert len(lines) == 6


def test_what_does_not_fit_is_said_by_device() -> None:
    text = "\n".join(sizing(experiment(actor=0, env_rollout=1), TWO).lines())
    assert "policies in cuda:0 of node 0: 1.73 GiB of 1.00 GiB: DOES NOT FIT" in text
    assert "policies in cuda:1 of node 0: 0.10 GiB of 80.00 GiB, which fits" in text


def test_a_model_of_unknown_size_is_left_out() -> None:
    text = "\n".join(sizing(experiment(actor=0, env_rollout=1), TWO, None).lines())
    assert "policy" not in text
    assert "every actor" in text


PLACED = ["--config_name", "pick_cube_ppo_mlp", "cluster.component_placement={actor\\,env\\,rollout:0-3}"]


def test_a_dry_run_plans_for_a_larger_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Resources, "of_this_machine", lambda _: TWO)
    assert main(["train", "--dry_run", *PLACED]) == 0
    out, err = capsys.readouterr()
    assert "[WARN] The placement needs accelerators 0-3; node 0 has 2, and 2-3 are missing" in err
    assert "#   actor+env+rollout 0-3: node 0, cuda:0-3; environments 32 of env.train" in out


def test_a_dry_run_of_several_processes_has_their_own_numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    MlpPolicy(state_dim=16, action_dim=4, num_action_chunks=4, hidden=(16, 16)).save(tmp_path)
    flags = ["train", "--dry_run", *PLACED, "--model_path", str(tmp_path), "env.train.num_workers=3"]
    few = Resources((dataclasses.replace(LAPTOP.nodes[0], num_cores=2),))
    monkeypatch.setattr(Resources, "of_this_machine", lambda _: few)
    assert main(flags) == 0
    out, err = capsys.readouterr()
    assert err.count("Node 0 has 2 cores for 4 processes") == 1
    assert "# env.train: 128 environments in 12 processes; shared memory: " in out
    assert "policy" in next(line for line in out.splitlines() if line.startswith("#   actor+env+rollout 0-3"))
    assert "# weights: 0.0 M parameters" in out
    assert "# a checkpoint on disk: about " in out
    assert "# training" not in out, "of the whole, which no process holds alone"
    assert "together on the device" not in out

    assert main(["train", "--dry_run", "--config_name", "pick_cube_ppo_mlp", "--model_path", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "cores for" not in err
    assert "# training 0.0 M of them" in out
    assert "# together on the device" in out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "error: The placement needs accelerators 0-3; node 0 has 2"),
        (["env.train.total_num_envs=6"], "error: The placement needs accelerators"),
        (["--dry_run", "env.train.total_num_envs=6"], "error: The training environments do not divide over 4 rollout"),
        (["--dry_run", "runner.max_staleness=1"], "error: A rollout cannot overlap the update"),
    ],
)
def test_what_cannot_run_is_refused_before_there_is_a_folder(
    flags: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Resources, "of_this_machine", lambda _: TWO)
    monkeypatch.setattr("regrasp.experiment.paths.require_paths", lambda *_: None)
    assert main(["train", *PLACED, *flags]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert "  file:     command line" in err
    assert not list(tmp_path.iterdir())


def test_an_evaluation_asks_for_no_processes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--dry_run", "--only_eval", *PLACED]) == 0
    assert "# processes" not in capsys.readouterr().out
