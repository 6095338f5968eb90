"""Isaac Lab tasks on the real 2.3.2 wheel: managers, registry, configuration and step are its own, physics is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
import torch
from lab_envs import LAB_PYTHON, lab_config, lab_env, needs_lab, start, states
from torch import Tensor

from regrasp.envs.config import TimeoutsConfig
from regrasp.envs.contract import VecEnv
from regrasp.envs.isaaclab.config import IsaacLabMapping
from regrasp.envs.mapping import ActionMapping, ObservationMapping
from regrasp.envs.mapping_config import MappingConfig
from regrasp.envs.process.vector import RemoteVecEnv
from regrasp.errors import SimulatorError, UserError
from regrasp.experiment.load import load_config

pytestmark = needs_lab
REFERENCE = Path(__file__).parents[1] / "config" / "reference_experiment.yaml"
RAISE, DIE, HANG = 700.0, 800.0, 900.0
X, Y, RESETS, HELD = 0, 1, 2, 3
MAPPING = MappingConfig(
    task_description="push the point",
    main_images="front",
    extra_view_images=("camera_images/wrist",),
    states=states("position", "num_resets", "last_action"),
)


@pytest.fixture(scope="module")
def point() -> Iterator[VecEnv]:
    env = lab_env("lab_tasks:Point-v0", MAPPING, init={"camera_size": (6, 10)})
    yield env
    env.close()


@pytest.fixture(scope="module")
def direct() -> Iterator[VecEnv]:
    mapping = IsaacLabMapping(task_description="push", states=states("policy"), success_term="reached")
    env = lab_env("lab_tasks:Point-Direct-v0", mapping, num_envs=2, timeouts=TimeoutsConfig(step_s=2.0))
    yield env
    env.close()


def push(*amounts: float, steps: int = 4, width: int = 3) -> Tensor:
    """(N, T, A): each environment adds its amount to x in every step."""
    actions = torch.zeros(len(amounts), steps, width)
    actions[..., 0] = torch.tensor(amounts)[:, None]
    return actions


def test_the_task_describes_itself(point: VecEnv) -> None:
    raw = point.spec.raw_observations
    assert raw["policy/position"].shape == (2,)  # the group is concatenated by default
    assert (raw["camera_images/front"].shape, raw["camera_images/front"].dtype) == ((6, 10, 3), "uint8")
    assert point.spec.action_dim == 3
    assert point.spec.quaternions == "wxyz"
    assert point.spec.step_seconds == pytest.approx(0.02)
    assert point.capabilities.true_final_observation
    assert not point.capabilities.seed_per_env
    assert isinstance(point, RemoteVecEnv)
    assert "update_stage" in point.spec.notes[0]
    assert "update_stage" in point.spec.reward_doubts[0]


def test_observations_arrive_as_the_task_computed_them(point: VecEnv) -> None:
    observation = point.reset([0, 1, 2], [1, 2, 3])
    assert observation.instruction == ["push the point"] * 3
    observation = point.step(push(0.1, -0.1, 0.0, steps=2)).observation
    assert torch.allclose(observation.state["state"][:, X], torch.tensor([0.2, -0.2, 0.0]))
    assert observation.images["main"][:, 0, 0, 0].tolist() == [120, 80, 100]
    assert {name: images.shape for name, images in observation.images.items()} == {
        "main": (3, 6, 10, 3),
        "extra_0": (3, 6, 10, 3),
    }


def test_an_episode_ends_with_its_true_final_observation(point: VecEnv) -> None:
    first = point.reset([0, 1, 2], [1, 2, 3])
    step = point.step(push(0.2, -0.2, 0.01))
    assert step.num_executed.tolist() == [2, 2, 4]
    assert step.terminated.tolist() == [True, True, False]
    assert step.success.tolist() == [True, False, False]
    assert torch.allclose(step.observation.state["state"][:, X], torch.tensor([0.4, -0.4, 0.04]))
    assert step.observation.images["main"][:2, 0, 0, 0].tolist() == [140, 60]
    assert torch.equal(step.observation.state["state"][:, RESETS], first.state["state"][:, RESETS])


def test_rewards_are_the_steps_own(point: VecEnv) -> None:
    point.reset([0, 1, 2], [1, 2, 3])
    step = point.step(push(0.2, -0.2, 0.01))
    # The reward is x, and 1 less in the step of any termination; Isaac Lab reuses one buffer for all steps.
    expected = torch.tensor([[0.2, -0.6, 0.0, 0.0], [-0.2, -1.4, 0.0, 0.0], [0.01, 0.02, 0.03, 0.04]])
    assert torch.allclose(step.rewards, expected)


def test_an_ended_environment_waits_until_it_is_reset(point: VecEnv) -> None:
    first = point.reset([0, 1, 2], [1, 2, 3])
    ended = point.step(push(0.2, 0.0, 0.0))
    later = point.step(push(0.1, 0.0, 0.05))
    assert later.num_executed.tolist() == [0, 4, 4]
    assert later.rewards[0].tolist() == [0.0] * 4
    assert not later.success[0]
    assert not later.done[0]
    assert torch.equal(later.observation.state["state"][0], ended.observation.state["state"][0])
    fresh = point.reset([0], [9])
    assert fresh.state["state"][0, RESETS] == first.state["state"][0, RESETS] + 1
    assert point.step(push(0.0, 0.0, 0.0, steps=1)).observation.state["state"][2, X] == pytest.approx(0.2)


def test_the_step_limit_truncates_and_the_simulator_is_reset(point: VecEnv) -> None:
    for _ in range(2):
        before = point.reset([0, 1, 2], [1, 2, 3]).state["state"][:, RESETS]
        steps = [point.step(push(0.0, 0.01, 0.02)) for _ in range(3)]
        assert torch.stack([step.num_executed for step in steps]).sum(0).tolist() == [10, 10, 10]
        assert [step.truncated.any().item() for step in steps] == [False, False, True]
        assert not steps[2].terminated.any()
        final = steps[2].observation.state["state"]
        assert torch.allclose(final[:, X], torch.tensor([0.0, 0.1, 0.2]))
        assert torch.equal(final[:, RESETS], before)


def test_a_seed_fixes_an_episodes_start_whatever_else_is_reset(point: VecEnv) -> None:
    together = point.reset([0, 1, 2], [11, 12, 13]).state["state"][:, Y]
    assert len(set(together.tolist())) == 3
    alone = point.reset([2], [12]).state["state"][2, Y]
    assert alone == together[1]


def construction(name: Literal["train", "eval"], seed: int, stream: int) -> tuple[int, float]:
    """The seed that the configuration had when the environment was built, and what was drawn then."""
    mapping = IsaacLabMapping(task_description="push", states=states("construction"))
    env = start(lab_config("lab_tasks:Point-v0", mapping, num_envs=1, seed=stream), name, seed=seed)
    try:
        high, low, drawn = env.reset([0], [1]).state["state"][0].tolist()
    finally:
        env.close()
    return int(high) << 16 | int(low), drawn


@pytest.mark.full
def test_the_runs_seed_is_in_the_configuration_before_the_environment_is_built() -> None:
    built = [construction("train", 5, 0), construction("eval", 5, 0), construction("train", 5, 1)]
    assert len({seed for seed, _ in built}) == 3
    assert [seed % 2 for seed, _ in built] == [0, 1, 0]
    for seed, drawn in built:
        assert drawn == pytest.approx(float(torch.rand(1, generator=torch.Generator().manual_seed(seed))))


def test_videos_show_every_step(point: VecEnv) -> None:
    point.record([1], 12, 20)
    point.reset([0, 1, 2], [1, 2, 3])
    frames = point.step(push(0.0, 0.1, 0.0)).frames
    point.record([])
    assert frames is not None
    assert frames.shape == (1, 4, 12, 20, 3)
    assert frames[0, :, 5, 5, 0].tolist() == [110, 120, 130, 140]


@pytest.mark.parametrize(
    ("mapping", "named"),
    [
        (MappingConfig(main_images="fornt"), "camera_images/front"),
        (MappingConfig(main_images="floating"), "is not a camera image"),
        (MappingConfig(states=states("positoin")), "policy/position"),
    ],
)
def test_what_the_task_does_not_offer_is_an_error_that_lists_what_it_does(
    point: VecEnv, mapping: MappingConfig, named: str
) -> None:
    with pytest.raises(UserError, match=named):
        ObservationMapping(mapping, point.spec.raw_observations, "env.train.mapping")


def test_the_references_experiment_runs_unchanged_on_its_tasks_interface(caplog: pytest.LogCaptureFixture) -> None:
    overrides = [
        "env.eval.init_params.id='lab_tasks:IsaacContrib-Assemble-Trocar-G129-Dex3-Eval'",
        f"env.isaaclab.python={LAB_PYTHON}",
        "env.isaaclab.device=cpu",
        "env.eval.max_episode_steps=6",
        "env.eval.isaaclab.call_zero_weight_terms=[update_stage]",
    ]
    config = load_config(str(REFERENCE), overrides).config
    assert config.env.eval.ignore_terminations
    env = start(config.env.eval, "eval")
    try:
        assert "weight 0" not in caplog.text
        before = env.reset(range(4), range(4))
        assert before.instruction == ["assemble trocar from tray"] * 4
        assert list(before.images) == ["room_view", "left_wrist_view", "right_wrist_view"]
        assert before.images["right_wrist_view"].shape == (4, 8, 8, 3)
        assert torch.equal(before.state["left_hand"], before.state["state"][:, 14:21])
        assert before.state["state"][0, :14].tolist() == list(range(15, 29))
        assert (before.state["state"][0, 14:] - before.state["state"][0, 14]).tolist() == list(range(14))
        mapping = ActionMapping(config.env.eval.mapping, config.actor.model.action_dim, env.spec.action_dim, "env.eval")
        actions = mapping(push(0.2, 0.2, 0.2, 0.2, width=28))
        steps = [env.step(actions), env.step(actions)]
        assert torch.cat([step.rewards for step in steps], 1).tolist() == [[1.0] * 6 + [0.0] * 2] * 4
        assert [step.terminated.any().item() for step in steps] == [False, False]
        assert [step.truncated.all().item() for step in steps] == [False, True]
        assert steps[0].success.all()
        assert torch.allclose(steps[1].observation.state["state"][:, :14], before.state["state"][:, :14] + 1.2)
        assert torch.equal(steps[1].observation.state["state"][:, 14:], before.state["state"][:, 14:])
    finally:
        env.close()


@pytest.mark.full
def test_a_task_without_reward_learns_from_a_named_success_and_chooses_its_instruction(
    caplog: pytest.LogCaptureFixture,
) -> None:
    mapping = IsaacLabMapping(
        states=states("policy/position", "policy/num_resets"),
        reward_source="success",
        success_term="reached",
        instruction_key="goal",
        instructions=("stay", "go"),
    )
    env = lab_env("lab_tasks:Point-Imitation-v0", mapping, num_envs=2)
    try:
        observation = env.reset([0, 1], [1, 2])
        chosen = [env.spec.instructions[int(count) % 2] for count in observation.state["state"][:, RESETS]]
        assert observation.instruction == chosen
        assert env.reset([1], [3]).instruction != chosen
        step = env.step(push(0.2, 0.1))
        assert step.rewards.tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]]
        assert step.success.tolist() == [True, True]
        assert "nothing to learn" not in caplog.text
    finally:
        env.close()


@pytest.mark.full
def test_an_instruction_that_is_not_there_is_the_users_mistake() -> None:
    mapping = IsaacLabMapping(states=states("policy/position"), instruction_key="goal", instructions=("stay",))
    env = lab_env("lab_tasks:Point-v0", mapping, num_envs=1)
    try:
        assert env.reset([0], [1]).instruction == ["stay"]
        with pytest.raises(UserError, match="'policy/goal' is 1 in environment 0") as caught:
            env.reset([0], [2])
    finally:
        env.close()
    assert caught.value.key == "env.train.mapping.instructions"


@pytest.mark.full
def test_direct_tasks_are_reset_one_by_one(direct: VecEnv) -> None:
    before = direct.reset([0, 1], [1, 2]).state["state"]
    step = direct.step(push(0.2, 0.05, width=1))
    assert step.terminated.tolist() == [True, False]
    assert step.success.tolist() == [True, False]
    assert step.observation.state["state"][:, X].tolist() == pytest.approx([0.4, 0.2])
    assert torch.equal(step.observation.state["state"][:, RESETS], before[:, RESETS])
    assert direct.reset([0], [2]).state["state"][0, Y] == before[1, Y]
    after = direct.step(push(0.0, 0.0, steps=1, width=1)).observation.state["state"]
    assert after[:, X].tolist() == pytest.approx([0.0, 0.2])
    assert (after - before)[:, RESETS].tolist() == [1, 0]


# The two tests below end the simulators of this file, so they are its last ones.


def test_an_exception_arrives_with_its_traceback_and_a_dead_simulator_is_named(point: VecEnv) -> None:
    point.reset([0, 1, 2], [1, 2, 3])
    with pytest.raises(SimulatorError, match=r"(?s)RuntimeError: the actuator is on fire.*process_actions"):
        point.step(push(RAISE, 0, 0))
    with pytest.raises(SimulatorError, match="killed by signal 9"):
        point.step(push(DIE, 0, 0))


@pytest.mark.full
def test_a_silent_simulator_is_killed_at_its_deadline_with_its_last_words(direct: VecEnv) -> None:
    direct.reset([0, 1], [1, 2])
    with pytest.raises(SimulatorError, match=r"(?s)did not answer 'step'.*waiting for an asset"):
        direct.step(push(HANG, 0, width=1))
