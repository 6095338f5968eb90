"""What a block asks of Gymnasium environments: an expert, what they render, several tasks. And their raw episodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_gymnasium_env import config, seed_and_clock, started

from regrasp.envs.gymnasium.config import GymnasiumTask
from regrasp.envs.mapping_config import StateEntry
from regrasp.envs.process.seeds import seed31
from regrasp.errors import UserError

gymnasium = pytest.importorskip("gymnasium")
SINGLE = "gym_envs:Count-v0"
EXPERT = "gym_envs:counting_expert"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


@pytest.mark.parametrize(
    ("task", "bounds"),
    [("Pendulum-v1", "rescale"), ("CartPole-v1", "clip"), ("Hopper-v5", "clip"), ("FrozenLake-v1", "clip")],
)
def test_every_step_is_that_of_the_raw_environment(task: str, bounds: Any) -> None:
    """With the same seed and the same actions, of Box and Discrete spaces."""
    raw = gymnasium.make(task, max_episode_steps=30)
    low, high = getattr(raw.action_space, "low", None), getattr(raw.action_space, "high", None)
    rng = np.random.default_rng(0)
    mapping = {"states": (StateEntry("observation"),), "action_bounds": bounds}
    with started(task, num_envs=1, limit=30, mapping=mapping) as env:
        for seed in (6, 14):
            seen = env.reset([0], [seed])
            expected, _ = raw.reset(seed=seed31(seed))
            over = False
            while not over:
                vector = rng.uniform(-1.5, 1.5, env.spec.action_dim).astype(np.float32)
                step = env.step(torch.from_numpy(vector)[None, None])
                if low is None:
                    action = int(vector.argmax())
                else:
                    wanted = low + (vector.astype(np.float64) + 1) / 2 * (high - low) if bounds == "rescale" else vector
                    action = np.clip(wanted, low, high).astype(np.float32)
                assert np.allclose(as_vector(expected, raw), seen.state["state"][0].numpy())
                expected, reward, terminated, truncated, _ = raw.step(action)
                seen, over = step.observation, terminated or truncated
                assert step.rewards.item() == pytest.approx(float(reward), abs=1e-5)
                assert (step.terminated.item(), step.truncated.item()) == (terminated, truncated and not terminated)
            assert np.allclose(as_vector(expected, raw), seen.state["state"][0].numpy()), "the final observation"


def as_vector(observation: Any, raw: Any) -> np.ndarray:
    if isinstance(raw.observation_space, gymnasium.spaces.Discrete):
        return np.eye(int(raw.observation_space.n), dtype=np.float32)[observation]
    return np.asarray(observation, np.float32)


@pytest.mark.parametrize(
    ("action", "bounds", "given"),
    [
        ("box", "clip", [[1.0, 9.0], [2.0, 9.0], [2.0, 9.0]]),
        ("box", "rescale", [[0.5, 0.8], [1.0, 0.8], [1.0, 0.8]]),
        ("discrete", "clip", [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
        ("choices", "clip", [[0.0, 1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 1.0, 0.0]]),
    ],
)
def test_an_expert_is_made_for_each_episode_and_acts_within_the_bounds(
    action: str, bounds: str, given: list[list[float]]
) -> None:
    with started(num_envs=1, expert=EXPERT, mapping={"action_bounds": bounds}, kwargs={"action": action}) as env:
        assert env.capabilities.has_expert
        for _ in range(2):
            env.reset([0], [6])  # three steps long
            for expected in given:
                chosen = env.expert_actions()
                assert chosen[0].tolist() == pytest.approx(expected)
                env.step(chosen[:, None])


def test_pixels_are_what_the_environment_renders_at_that_moment() -> None:
    mapping = {"main_images": "pixels"}
    with started(num_envs=2, pixels=(6, 10), mapping=mapping) as env:
        assert env.spec.raw_observations["pixels"].shape == (6, 10, 3)
        assert env.reset([0, 1], [4, 8]).images["main"].unique().tolist() == [0]
        assert env.step(torch.zeros(2, 2, 2)).observation.images["main"].unique().tolist() == [2]


def test_images_are_scaled_by_the_area_that_a_pixel_covers() -> None:
    from PIL import Image

    from regrasp.envs.gymnasium.child.pixels import resized
    from regrasp.envs.gymnasium.env import env_options

    image = np.random.default_rng(0).integers(0, 256, (48, 60, 3), np.uint8)
    options = env_options(config(pixels=(16, 20)), "train")
    for height, width in ((16, 20), (48, 20), (48, 60)):
        expected = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX), np.int64)
        assert np.abs(resized(image, (height, width), options).astype(np.int64) - expected).max() <= 1
    assert resized(image, (31, 77), options).mean() == pytest.approx(image.mean(), abs=0.5)


TASKS = (
    GymnasiumTask("count apples"),
    GymnasiumTask("count pears", kwargs={"instruction": "pears"}),
    GymnasiumTask("count plums", id="gym_envs:CountBoth-v0"),
)


def test_the_seed_of_an_episode_chooses_its_task_whatever_the_row() -> None:
    seeds = [2, 4, 6, 8, 10, 12, 14]
    chosen: list[dict[int, str]] = []
    for num_envs in (1, 4):
        with started(num_envs=num_envs, tasks=TASKS) as env:
            assert env.spec.instructions == ("count apples", "count pears", "count plums")
            found = {}
            for start in range(0, len(seeds), num_envs):
                part = seeds[start : start + num_envs]
                observation = env.reset(range(len(part)), part)
                assert [seed for seed, _ in seed_and_clock(observation)[: len(part)]] == part
                found |= dict(zip(part, observation.instruction, strict=False))
        chosen.append(found)
    assert chosen[0] == chosen[1]
    assert set(chosen[0].values()) == set(env.spec.instructions)


def test_several_choices_are_seen_one_hot() -> None:
    from gymnasium import spaces

    from regrasp.envs.gymnasium.child.spaces import Leaf

    leaf = Leaf(("a",), spaces.MultiDiscrete([2, 3], start=[0, 4]))
    assert leaf.spec.shape == (5,)
    assert leaf.of({"a": np.array([1, 4])}).tolist() == [0, 1, 1, 0, 0]
    assert leaf.of({"a": np.array([[1, 4], [0, 6]])}).tolist() == [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]]
    nested = Leaf((), spaces.MultiDiscrete(np.full((2, 2), 2)))
    assert nested.of(np.array([[0, 1], [1, 0]])).tolist() == [1, 0, 0, 1, 0, 1, 1, 0]


def test_an_environment_that_ignores_its_seed_is_told() -> None:
    with started("gym_envs:Forgetful-v0") as env:
        assert not env.capabilities.seed_per_env
        assert any("two resets with one seed" in note for note in env.spec.notes)
    with started() as env:
        assert env.capabilities.seed_per_env


@pytest.mark.parametrize(
    ("task", "settings", "key", "texts"),
    [
        (
            SINGLE,
            {"expert": "gym_envs:no_expert"},
            "init_params.expert",
            ["no function 'no_expert'", "counting_expert"],
        ),
        (SINGLE, {"expert": "no_such_module:f"}, "init_params.expert", ["No module named 'no_such_module'"]),
        (SINGLE, {"expert": "gym_envs"}, "init_params.expert", ["module:function"]),
        ("gym_envs:CountVector-v0", {"expert": EXPERT}, "init_params.expert", ["single environment"]),
        ("gym_envs:Blind-v0", {"pixels": (4, 4)}, "init_params.pixels", ["rgb_array", "it has human"]),
        (SINGLE, {"tasks": (TASKS[0], GymnasiumTask("hop", id="Hoper-v5"))}, "init_params.tasks[1].id", ["Hopper-v5"]),
        (SINGLE, {"tasks": (TASKS[0], GymnasiumTask("swing", id="Pendulum-v1"))}, "init_params.tasks[1]", ["same"]),
        (
            SINGLE,
            {"tasks": (TASKS[0], GymnasiumTask("x", kwargs={"size": 3}))},
            "init_params.tasks",
            ["size", "TypeError"],
        ),
    ],
)
def test_mistakes_are_explained(task: str, settings: dict[str, Any], key: str, texts: list[str]) -> None:
    with pytest.raises(UserError) as caught, started(task, **settings):
        pass
    assert caught.value.key == f"env.train.{key}"
    assert all(text in str(caught.value) for text in texts), str(caught.value)


def test_an_expert_that_fails_is_a_mistake_with_its_place() -> None:
    with started(num_envs=1, expert="gym_envs:failing_expert") as env:
        env.reset([0], [6])
        with pytest.raises(UserError, match="KeyError") as caught:
            env.expert_actions()
    assert caught.value.key == "env.train.init_params.expert"
    assert "gym_envs.py" in str(caught.value)


def test_what_tasks_do_not_go_with() -> None:
    keys = [problem.key for problem in config(tasks=TASKS, instruction_key="task").problems("env.train")]
    assert keys == ["env.train.init_params.instruction_key"]
    keys = [problem.key for problem in config(tasks=TASKS, vector=True).problems("env.train")]
    assert keys == ["env.train.init_params.vector"]
