"""How the adapter reads a task's terms and sets its configuration, on small stand-ins for Isaac Lab's objects."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from vec_envs import make_env

from regrasp.envs.isaaclab.child import episodes, signals, task
from regrasp.envs.isaaclab.child.options import TaskOptions
from regrasp.envs.isaaclab.config import IsaacLabTrainConfig
from regrasp.envs.isaaclab.env import task_options
from regrasp.envs.isaaclab.vector import IsaacLabVecEnv
from regrasp.envs.process.seeds import joint_seed, seed31
from regrasp.envs.process.simulator import with_tuples
from regrasp.errors import UserError
from regrasp.experiment.load import load_config
from regrasp.seeding import Role, episode_seed


def options(**changes: Any) -> TaskOptions:
    shipped = load_config("isaaclab_stack_cube_ppo_groot").config.env.train
    assert isinstance(shipped, IsaacLabTrainConfig)
    return dataclasses.replace(task_options(shipped, "train", 1), **changes)


class Rewards:
    """A reward manager with the given weights, which counts what it is asked for."""

    def __init__(self, **weights: float) -> None:
        self.calls: list[str] = []
        self.terms = {
            name: SimpleNamespace(weight=weight, params={"name": name}, func=lambda env, name: self.calls.append(name))
            for name, weight in weights.items()
        }

    @property
    def active_terms(self) -> list[str]:
        return list(self.terms)

    def get_term_cfg(self, name: str) -> SimpleNamespace:
        return self.terms[name]

    def compute(self, dt: float) -> float:
        self.calls.append("compute")
        return dt


def lab(*terminations: str, rewards: Rewards | None = None) -> SimpleNamespace:
    manager = SimpleNamespace(active_terms=terminations, get_term=lambda name: torch.tensor([name == "success"]))
    return SimpleNamespace(num_envs=1, termination_manager=manager, reward_manager=rewards or Rewards())


def test_options_cross_the_border_as_json() -> None:
    ours = options(camera_size=(3, 4), presets=("a",))
    assert TaskOptions(**with_tuples(json.loads(json.dumps(dataclasses.asdict(ours))))) == ours


def test_seeds_of_31_bits_stay_apart_and_keep_their_parity() -> None:
    roles: tuple[Role, ...] = ("train", "eval")
    for parity, role in enumerate(roles):
        seeds = [episode_seed(0, role, 0, i) for i in range(2000)]
        short = [seed31(seed) for seed in seeds]
        assert {seed % 2 for seed in short} == {parity}
        assert len({*short}) == 2000
        assert 2**30 < max(short) < 2**31
        pairs = [joint_seed(pair) for pair in itertools.pairwise(seeds)]
        pairs += [joint_seed(pair[::-1]) for pair in itertools.pairwise(seeds)]
        assert {seed % 2 for seed in pairs} == {parity}
        assert len({*pairs}) == 2 * 1999
        assert max(pairs) < 2**31
    assert [seed31(seed) for seed in (0, 1, 11)] == [0, 1, 11]


def test_success_is_a_named_termination() -> None:
    signal = signals.success_signal(lab("time_out", "success"), options())
    assert signal is not None
    assert signal().item()
    other = signals.success_signal(lab("time_out", "success"), options(success_term="time_out"))
    assert other is not None
    assert not other().item()
    assert signals.success_signal(lab("time_out"), options(reward_source="task")) is None


@pytest.mark.parametrize(
    ("env", "changes"),
    [
        (lab("time_out"), {"reward_source": "success"}),
        (lab("time_out", "success"), {"success_term": "succes"}),
        (SimpleNamespace(num_envs=2, reached=torch.zeros(3)), {"success_term": "reached"}),
        (SimpleNamespace(num_envs=2), {"success_term": "reached"}),
        (SimpleNamespace(num_envs=2), {"reward_source": "success"}),
    ],
)
def test_a_success_that_the_task_does_not_tell_is_the_users_mistake(env: Any, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        signals.success_signal(env, options(**changes))
    assert caught.value.key == "env.train.mapping.success_term"


def test_a_task_without_rewards_needs_another_source() -> None:
    signals.check_reward_source(lab(), options(reward_source="success"))
    signals.check_reward_source(lab(rewards=Rewards(lift=1.0)), options(reward_source="task"))
    with pytest.raises(UserError, match="no reward terms"):
        signals.check_reward_source(lab(), options(reward_source="task"))


def test_terms_of_weight_zero_are_called_before_the_rewards() -> None:
    rewards = Rewards(stage=0.0, lift=1.0, other=0.0)
    env = lab(rewards=rewards)
    assert signals.zero_weight_terms(env) == ("stage", "other")
    signals.call_zero_weight_terms(env, options(call_zero_weight_terms=("stage",)))
    assert rewards.compute(dt=0.5) == 0.5
    assert rewards.calls == ["stage", "compute"]
    rewards.terms["stage"].weight = 2.0  # a curriculum took it up, so the manager calls it
    rewards.compute(dt=0.5)
    assert rewards.calls == ["stage", "compute", "compute"]


@pytest.mark.parametrize("name", ["lift", "stages"])
def test_only_terms_of_weight_zero_can_be_called(name: str) -> None:
    with pytest.raises(UserError, match=r"\['stage'\]"):
        signals.call_zero_weight_terms(
            lab(rewards=Rewards(stage=0.0, lift=1.0)), options(call_zero_weight_terms=(name,))
        )


@pytest.mark.parametrize("env", [lab(rewards=Rewards(lift=1.0)), SimpleNamespace(num_envs=1)])
def test_a_task_without_terms_of_weight_zero_has_none_to_call(env: Any) -> None:
    with pytest.raises(UserError, match="no reward term of weight 0") as caught:
        signals.call_zero_weight_terms(env, options(call_zero_weight_terms=("stage",)))
    assert caught.value.expected is not None
    assert caught.value.expected.startswith("nothing")


def configuration(**fields: Any) -> SimpleNamespace:
    camera = SimpleNamespace(height=480, width=640, data_types=["rgb"])
    groups = {name: SimpleNamespace(concatenate_terms=True) for name in ("policy", "critic")}
    return SimpleNamespace(
        seed=None,
        scene=SimpleNamespace(num_envs=1, table_cam=camera, robot=SimpleNamespace(height=1)),
        sim=SimpleNamespace(device="cuda:0", dt=0.01),
        decimation=5,
        episode_length_s=30.0,
        observations=SimpleNamespace(**groups),
        **fields,
    )


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch):
    def run(config: SimpleNamespace, **changes: Any) -> Any:
        utilities = ModuleType("isaaclab_tasks.utils")
        utilities.__dict__["parse_env_cfg"] = lambda task_id, device, num_envs: config
        monkeypatch.setitem(sys.modules, "isaaclab_tasks.utils", utilities)
        return task.configure("Task-v0", options(**changes), 7)

    return run


def package(folder: Path, name: str, text: str) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(text)


@pytest.mark.parametrize(
    ("task_id", "message"),
    [
        ("needy:Task-v0", r"'needy' cannot be imported: ModuleNotFoundError: No module named 'nothing' \(.*, line 2\)"),
        ("garbled:Task-v0", r"'garbled' cannot be imported: SyntaxError: .*garbled/__init__.py, line 1\)"),
        ("raising:Task-v0", r"'raising' cannot be imported: KeyError: 'x' \(.*raising/__init__.py, line 1\)"),
        ("needs:Task-v0", r"'needs' cannot be imported: ModuleNotFoundError: No module named 'need' "),
        ("absent:Task-v0", "has no package 'absent'"),
        ("absent.below:Task-v0", "has no package 'absent.below'"),
        ("sound:Plain-v0", "without a configuration"),
        ("sound:Taks-v0", "has no such task"),
        (":Taks-v0", "has no such task"),
    ],
)
def test_a_task_that_cannot_be_had_is_the_users_mistake(
    task_id: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(tmp_path, "needy", "import json\nimport nothing\n")
    package(tmp_path, "needs", "import need\n")
    package(tmp_path, "garbled", "def f(:\n")
    package(tmp_path, "raising", "{}['x']\n")
    package(tmp_path, "sound", "")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "isaaclab_tasks", ModuleType("isaaclab_tasks"))
    gymnasium = ModuleType("gymnasium")
    kwargs = {"Task-v0": {"env_cfg_entry_point": "x:Y"}, "Plain-v0": {}}
    gymnasium.__dict__["registry"] = {name: SimpleNamespace(kwargs=value) for name, value in kwargs.items()}
    monkeypatch.setitem(sys.modules, "gymnasium", gymnasium)
    assert task.register(options(id="sound:Task-v0")) == "Task-v0"
    with pytest.raises(UserError, match=message) as caught:
        task.register(options(id=task_id))
    assert caught.value.key == "env.train.init_params.id"
    assert caught.value.value == task_id


@pytest.mark.parametrize(
    ("names", "refused"), [(("policy", "x"), ["policy", "x"]), (("policy", "policy/y"), ["policy", "policy/y"])]
)
def test_a_group_is_named_as_a_whole_or_by_its_terms(configure, names: tuple[str, ...], refused: list[str]) -> None:
    config = configuration()
    term = SimpleNamespace(func=len)
    config.observations.policy = SimpleNamespace(concatenate_terms=True, x=term, y=term, z=term)
    config.observations.critic = SimpleNamespace(concatenate_terms=True, z=term)
    with pytest.raises(UserError, match="'policy' as a whole") as caught:
        configure(config, observation_names=names)
    assert caught.value.value == refused
    configure(config, observation_names=("policy", "z"))  # the critic's


def test_the_configuration_is_set_before_the_environment_is_built(configure) -> None:
    config = configure(
        configuration(num_rerenders_on_reset=0),
        seed=11,
        device="cuda:1",
        camera_size=(84, 96),
        observation_names=("critic", "table_cam"),
    )
    assert (config.seed, config.scene.num_envs, config.sim.device) == (11, 7, "cuda:1")
    assert (config.scene.table_cam.height, config.scene.table_cam.width) == (84, 96)
    assert config.scene.robot.height == 1
    assert config.num_rerenders_on_reset == 1
    assert not config.observations.policy.concatenate_terms
    assert config.observations.critic.concatenate_terms


@pytest.mark.parametrize("dt", [1 / 200, 1 / 120, 0.01, 1 / 60])
def test_the_simulators_time_limit_is_ours_to_the_step(configure, dt: float) -> None:
    for limit in (1, 7, 256, 448, 1000, 4999):
        config = configuration()
        config.sim.dt = dt
        seconds = configure(config, max_episode_steps=limit).episode_length_s
        assert math.ceil(seconds / (dt * 5)) == limit


def test_first_images_are_rendered_anew(configure) -> None:
    assert configure(configuration(num_rerenders_on_reset=3)).num_rerenders_on_reset == 3
    assert configure(configuration(num_rerenders_on_reset=0), cameras=False).num_rerenders_on_reset == 0
    assert configure(configuration(rerender_on_reset=False)).rerender_on_reset is True


def test_settings_without_effect_are_mistakes(configure) -> None:
    config = configuration()
    del config.scene.table_cam
    with pytest.raises(UserError, match="no camera to resize"):
        configure(config, camera_size=(8, 8))
    with pytest.raises(UserError, match="no configuration presets"):
        configure(configuration(), presets=("physics=newton_mjwarp",))


def test_the_way_to_the_final_observation_depends_on_what_is_there() -> None:
    assert episodes.choose(configuration(), ignore_terminations=False) is episodes.Deferred
    assert episodes.choose(configuration(compute_final_obs=False), ignore_terminations=True) is episodes.Deferred
    config = configuration(compute_final_obs=False)
    assert episodes.choose(config, ignore_terminations=False) is episodes.FinalObservation
    assert config.compute_final_obs


@pytest.mark.parametrize("push", [0.0, 0.5])
def test_a_constant_reward_is_reported_once(push: float, caplog: pytest.LogCaptureFixture) -> None:
    env = make_env(num_envs=2, limit=4, lengths=[100], kind=IsaacLabVecEnv)
    assert isinstance(env, IsaacLabVecEnv)
    doubts = ("reward term 'update_stage' has weight 0, so it is never called",)
    env.spec = dataclasses.replace(env.spec, reward_doubts=doubts)
    try:
        for _ in range(4):
            env.reset([0, 1], [0, 1])
            actions = torch.zeros(2, 4, env.spec.action_dim)
            actions[0, 1] = push
            env.step(actions)
    finally:
        env.close()
    assert caplog.text.count("every reward so far was 0") == (push == 0)
    assert ("update_stage" in caplog.text) == (push == 0)
