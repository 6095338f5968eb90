"""Which simulators and tasks there are, and what a wrong name says."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from importlib.metadata import EntryPoint
from types import MappingProxyType
from typing import Any

import pytest
from pydantic.dataclasses import dataclass
from vec_envs import CUBE_MAPPING, PICK, STACK

from regrasp.config.types import BLOCK
from regrasp.envs import registry
from regrasp.envs.config import EnvConfig, EvalEnvConfig, InitParams, TrainEnvConfig
from regrasp.envs.env_type import EnvType
from regrasp.envs.mujoco import backend
from regrasp.envs.mujoco.catalog import TASK_IDS
from regrasp.envs.mujoco.config import MujocoEnvConfig, MujocoInitParams
from regrasp.envs.mujoco.env import Mujoco
from regrasp.envs.registry import EnvTypes, create_env
from regrasp.errors import UserError
from regrasp.experiment.load import load_config


def config(task: str = PICK, **fields) -> MujocoEnvConfig:
    return MujocoEnvConfig(
        env_type="mujoco",
        total_num_envs=2,
        max_episode_steps=8,
        init_params=MujocoInitParams(id=task),
        mapping=CUBE_MAPPING,
        **fields,
    )


def test_environments_are_as_the_configuration_says():
    env = create_env(config(task=STACK, num_workers=1, ignore_terminations=True), "eval", max_chunk=3)
    spec = env.spec
    observation = env.reset([0, 1], [1, 2])
    env.close()
    assert (spec.task_id, spec.num_envs, spec.max_episode_steps, spec.action_dim) == (STACK, 2, 8, 4)
    assert (spec.state_dim, spec.cameras, spec.step_seconds) == (13, ("main", "extra_0"), 0.1)
    assert len(spec.instructions) == 6
    assert len(observation) == 2


def test_an_unknown_simulator_is_the_users_mistake():
    unknown = EnvConfig("mujocco", 2, 8, InitParams(PICK), CUBE_MAPPING)
    for attempt in (
        lambda: create_env(unknown, "eval", 1),
        lambda: load_config("pick_cube_ppo_mlp", ["env.eval.env_type=mujocco"]),
    ):
        with pytest.raises(UserError) as caught:
            attempt()
        assert caught.value.key == "env.eval.env_type"
        assert caught.value.expected is not None
        assert "isaaclab, mujoco" in caught.value.expected


@pytest.mark.parametrize(
    ("task", "hint"), [("Regrasp-Pick-Cube", "did you mean 'Regrasp-Pick-Cube-v0'?"), ("xyz", "`regrasp tasks`")]
)
def test_an_unknown_task_is_the_users_mistake(task: str, hint: str):
    with pytest.raises(UserError) as caught:
        create_env(config(task=task), "train", 1)
    assert caught.value.key == "env.train.init_params.id"
    assert caught.value.fix is not None
    assert hint in caught.value.fix


def test_packages_add_simulators_by_entry_points(monkeypatch: pytest.MonkeyPatch):
    point = EntryPoint("toy", f"{__name__}:create_toy", "regrasp.envs")
    monkeypatch.setattr(registry, "entry_points", lambda *, group: [point] if group == "regrasp.envs" else [])
    assert set(EnvTypes()) == {"mujoco", "isaaclab", "gymnasium", "toy"}
    toy = load_config("pick_cube_ppo_mlp", ["env.train.env_type=toy", "env.eval.env_type=toy"]).config.env
    assert (type(toy.train), type(toy.eval)) == (TrainEnvConfig, EvalEnvConfig)
    given: list[Any] = [
        create_env(toy.train, "train", 5, 7),
        create_env(toy.train, "train", 5, 8),
        create_env(toy.eval, "eval", 5, 7),
    ]
    assert given[0][:3] == ("toy", "train", 5)
    assert len({seed for *_, seed in given}) == 3


@dataclass(frozen=True, config=BLOCK)
class ToyInitParams(InitParams):
    """What the toy is started with."""

    gravity: float = 9.81
    """Metres per second squared."""


@dataclass(frozen=True, config=BLOCK, kw_only=True)
class ToyTrainConfig(TrainEnvConfig):
    """The environments of training in the toy."""

    init_params: ToyInitParams
    """What the toy is started with."""


class Toy(EnvType[EnvConfig]):
    """A simulator with a key of its own."""

    train = ToyTrainConfig
    shared = MappingProxyType({"gravity": ("init_params", "gravity")})

    def owns_task(self, task_id: str) -> bool:
        return task_id.startswith("Toy-")


def test_a_package_brings_keys_of_its_own(monkeypatch: pytest.MonkeyPatch):
    point = EntryPoint("toy", f"{__name__}:Toy", "regrasp.envs")
    monkeypatch.setattr(registry, "entry_points", lambda *, group: [point])
    on_toy = ["env.train.env_type=toy", "env.train.init_params.id=Toy-v0"]
    train = load_config("pick_cube_ppo_mlp", [*on_toy, "env.train.init_params.gravity=1.6"]).config.env.train
    assert isinstance(train, ToyTrainConfig)
    assert train.init_params.gravity == 1.6
    shared = load_config("pick_cube_ppo_mlp", [*on_toy, "env.toy.gravity=3.7"]).config.env
    assert shared.train == dataclasses.replace(train, init_params=ToyInitParams("Toy-v0", gravity=3.7))
    assert load_config("pick_cube_ppo_mlp", task="Toy-v0").config.env.train.env_type == "toy"
    for overrides, key, words in (
        ([*on_toy, "env.train.init_params.gravty=1"], "gravty", "did you mean env.train.init_params.gravity"),
        (["env.train.init_params.gravity=1.6"], "gravity", "has an effect with toy only"),
        ([*on_toy, "env.train.init_params.gravity=x"], "gravity", "for example env.train.init_params.gravity=9.81"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            load_config("pick_cube_ppo_mlp", overrides)
        assert caught.value.key == f"env.train.init_params.{key}"


def create_toy(config: EnvConfig, name: str, max_chunk: int, seed: int) -> tuple[str, str, int, int]:
    return config.env_type, name, max_chunk, seed


def test_the_catalog_names_its_tasks_rightly():
    from regrasp.envs.mujoco.simulator import create_task

    assert {task_id: create_task(task_id).task_id for task_id in TASK_IDS} == {task_id: task_id for task_id in TASK_IDS}


def test_the_renderers_parent_imports_neither_simulator_nor_torch():
    """MuJoCo chooses its graphics backend when it is imported; every renderer's process imports this module."""
    code = "import sys, regrasp.envs.mujoco.scenes; assert not {'mujoco', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_graphics_backend_that_fails_is_named_before_mujoco_is_imported(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MUJOCO_GL", "vulkan")
    backend.working_backend.cache_clear()
    with pytest.raises(UserError, match="vulkan"):
        Mujoco().describe(config(), "train")
    backend.working_backend.cache_clear()
    monkeypatch.delenv("MUJOCO_GL")
    assert Mujoco().describe(config(), "train").step_seconds == 0.1


def test_a_machine_without_graphics_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MUJOCO_GL", "vulkan")
    backend.working_backend.cache_clear()
    with pytest.raises(UserError) as caught:
        backend.require_backend()
    backend.working_backend.cache_clear()
    assert "vulkan" in caught.value.problem
    assert caught.value.key == "MUJOCO_GL"
    assert caught.value.fix is not None
    assert "apt-get install" in caught.value.fix


def test_a_choice_left_in_the_shell_does_not_break_the_renderer(monkeypatch: pytest.MonkeyPatch):
    before = backend.probe("egl")
    monkeypatch.setenv("PYOPENGL_PLATFORM", "osmesa")
    assert backend.probe("egl") == before
    monkeypatch.setattr(backend, "require_backend", lambda: "egl")
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with pytest.raises(UserError, match="different graphics libraries") as caught:
        backend.require_chosen_backend()
    assert (caught.value.key, caught.value.value) == ("PYOPENGL_PLATFORM", "osmesa")


def test_the_cause_of_a_failed_renderer_is_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MUJOCO_GL", "vulkan")
    backend.working_backend.cache_clear()
    with pytest.raises(
        UserError, match="vulkan fails with RuntimeError: invalid value for environment variable MUJOCO_GL"
    ):
        backend.require_backend()
    backend.working_backend.cache_clear()


def test_a_backend_that_hangs_is_not_a_working_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backend, "_PROBE", "import time; time.sleep(60)")
    monkeypatch.setattr(backend, "_PROBE_SECONDS", 0.5)
    assert backend.probe("egl") == "no image within 0.5 seconds"
