"""The cube tasks: their experts succeed, and success means what the instruction says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from vec_envs import CUBE_STATES, PICK, STACK, make_env

from regrasp.envs.contract import Observation, Step
from regrasp.envs.process.vector import RemoteVecEnv

NUM_EPISODES = 100
ACTION_NOISE = 0.15
LIMITS = {PICK: 40, STACK: 60}
COLORS = ("red", "green", "blue")
OPEN = 0.09


class Watched:
    """The named cubes and the gripper in an observation's state vector (see `CUBE_STATES`)."""

    def __init__(self, observation: Observation) -> None:
        states = observation.state["state"]
        self.hand = states[:, :3]
        self.opening = states[:, 3]
        self.cubes = states[:, 4:13].reshape(-1, 3, 3)
        self.wanted = states[:, 13:]
        named = [[COLORS.index(word) for word in text.split() if word in COLORS] for text in observation.instruction]
        rows = torch.arange(len(observation))
        self.object = self.cubes[rows, [cubes[0] for cubes in named]]
        self.base = self.cubes[rows, [cubes[-1] for cubes in named]]


def run_expert(env: RemoteVecEnv, steps: int, noise: float) -> tuple[Observation, Step, torch.Tensor, torch.Tensor]:
    """(first observation, last step, success, episode length) of one episode in every environment."""
    count = env.spec.num_envs
    rng = np.random.default_rng(0)
    first = env.reset(range(count), range(count))
    success, lengths = torch.zeros(count, dtype=torch.bool), torch.zeros(count, dtype=torch.long)
    step = None
    for _ in range(steps):
        actions = env.expert_actions()
        actions[:, :3] += torch.from_numpy(rng.normal(0, noise, (count, 3))).float()
        step = env.step(actions[:, None])
        success |= step.success
        lengths += step.num_executed
    assert step is not None
    return first, step, success, lengths


@pytest.mark.parametrize("task", [PICK, STACK])
@pytest.mark.parametrize("noise", [0.0, ACTION_NOISE])
def test_the_expert_succeeds(task: str, noise: float):
    env = make_env(task, NUM_EPISODES, 1, mapping=CUBE_STATES, limit=LIMITS[task])
    _, last, success, lengths = run_expert(env, LIMITS[task], noise)
    env.close()
    assert success.float().mean() >= 0.98
    assert lengths[success].max() < LIMITS[task]
    seen = Watched(last.observation)
    if task == PICK:
        assert (seen.object[success, 2] > 0.07).all()
    else:
        assert (seen.object[success, :2] - seen.base[success, :2]).norm(dim=1).max() < 0.02
        assert (seen.object[success, 2] - seen.base[success, 2] - 0.04).abs().max() < 0.006


def test_a_stacked_cube_stays_where_it_is():
    """Ten more steps (one second) without motion after each success: the gripper is open, the cube still on top."""
    env = make_env(STACK, 25, 1, mapping=CUBE_STATES, limit=80, ignore_terminations=True)
    count = env.spec.num_envs
    env.reset(range(count), range(count))
    succeeded_at = torch.full((count,), -1)
    rest = torch.tensor([0.0, 0.0, 0.0, 1.0])
    checked = torch.zeros(count, dtype=torch.bool)
    for t in range(70):
        actions = env.expert_actions()
        actions[succeeded_at >= 0] = rest
        step = env.step(actions[:, None])
        succeeded_at[(succeeded_at < 0) & step.success] = t
        due = (succeeded_at >= 0) & (succeeded_at + 10 == t)
        seen = Watched(step.observation)
        assert step.success[due].all()
        assert (seen.opening[due] > 0.06).all()
        assert ((seen.object - seen.base)[due, :2].norm(dim=1) < 0.02).all()
        torch.testing.assert_close(
            seen.object[due, 2] - seen.base[due, 2], torch.full((int(due.sum()),), 0.04), rtol=0, atol=0.003
        )
        checked |= due
    env.close()
    assert checked.float().mean() >= 0.95


def drive(env: RemoteVecEnv, goal: torch.Tensor, closed: bool, steps: int) -> Step:
    """Move the gripper of the only environment to `goal`, by what the state vector shows."""
    step = None
    position = env.step(torch.tensor([[[0.0, 0.0, 0.0, -1.0 if closed else 1.0]]])).observation.state["state"][0, :3]
    for _ in range(steps):
        motion = ((goal - position) / 0.03).clamp(-1, 1)
        step = env.step(torch.cat([motion, torch.tensor([-1.0 if closed else 1.0])])[None, None])
        position = step.observation.state["state"][0, :3]
    assert step is not None
    return step


def lift(env: RemoteVecEnv, cube: torch.Tensor, height: float) -> Step:
    """Grasp the cube at `cube` and lift it to `height`."""
    drive(env, torch.tensor([cube[0], cube[1], 0.09]), False, 10)
    drive(env, torch.tensor([cube[0], cube[1], 0.02]), False, 5)
    drive(env, torch.tensor([cube[0], cube[1], 0.02]), True, 3)
    return drive(env, torch.tensor([cube[0], cube[1], height]), True, 6)


def test_lifting_another_cube_is_no_success():
    env = make_env(PICK, 1, mapping=CUBE_STATES, limit=100)
    for seed in range(6):
        first = env.reset([0], [seed])
        named = next(i for i, color in enumerate(COLORS) if color in first.instruction[0])
        cubes = Watched(first).cubes[0]
        step = lift(env, cubes[(named + 1) % 3], 0.14)
        assert Watched(step.observation).cubes[0, (named + 1) % 3, 2] > 0.07
        assert not step.done.any()
        assert not step.success.any()
        assert not step.rewards.any()
        assert step.info["wrong_object"].tolist() == [1.0]
    env.close()


def test_lifting_the_named_cube_without_the_expert_is_a_success():
    env = make_env(PICK, 1, mapping=CUBE_STATES, limit=100)
    first = env.reset([0], [0])
    lift(env, Watched(first).object[0], 0.14)
    state = Watched(env.step(torch.zeros(1, 1, 4)).observation)
    stopped = env.step(torch.zeros(1, 1, 4)).num_executed.tolist()
    env.close()
    assert state.object[0, 2] > 0.07
    assert stopped == [0], "the episode has ended"


def test_holding_a_cube_over_the_other_is_no_success_before_letting_go():
    env = make_env(STACK, 1, mapping=CUBE_STATES, limit=200)
    first = Watched(env.reset([0], [3]))
    lift(env, first.object[0], 0.12)
    over = torch.tensor([first.base[0, 0], first.base[0, 1], 0.12])
    drive(env, over, True, 12)
    held = drive(env, over - torch.tensor([0.0, 0.0, 0.058]), True, 6)
    seen = Watched(held.observation)
    assert (seen.object - seen.base)[0, :2].norm() < 0.02
    assert not held.success.any()
    assert held.info["lifted"].tolist() == [1.0]
    released = env.step(torch.tensor([[[0.0, 0.0, 0.0, 1.0]] * 4]))
    env.close()
    assert released.success.tolist() == [True]
    assert released.terminated.tolist() == [True]


@pytest.mark.parametrize("task", [PICK, STACK])
def test_asking_the_expert_twice_changes_nothing(task: str):
    runs = []
    for times in (1, 3):
        env = make_env(task, 4, 1, mapping=CUBE_STATES, limit=60)
        env.reset(range(4), range(4))
        steps = []
        for _ in range(40):
            actions = [env.expert_actions() for _ in range(times)]
            assert all(torch.equal(again, actions[0]) for again in actions)
            steps.append(env.step(actions[0][:, None]).observation.state["state"])
        env.close()
        runs.append(torch.stack(steps))
    assert torch.equal(*runs)


@pytest.mark.parametrize("task", [PICK, STACK])
def test_starts_vary_and_name_every_cube_equally(task: str):
    env = make_env(task, 300, 1, mapping=CUBE_STATES)
    first = env.reset(range(300), range(1000, 1300))
    spec = env.spec
    env.close()
    seen = Watched(first)
    assert len({tuple(row) for row in first.state["state"].tolist()}) == 300
    assert (seen.cubes[..., 2] == 0.02).all(), "lying on the table"
    gaps = (seen.cubes[:, :, None, :2] - seen.cubes[:, None, :, :2]).norm(dim=-1) + torch.eye(3)
    assert gaps.min() > 0.085
    assert (seen.opening == OPEN).all()
    counts = torch.tensor([first.instruction.count(text) for text in spec.instructions])
    mean = 300 / len(spec.instructions)
    assert (counts - mean).abs().max() < 4 * mean**0.5
    shown = [spec.instructions[i] for i in seen.wanted.argmax(1).tolist()]
    assert shown == first.instruction, "the one-hot privileged observation agrees with the words"
    assert (seen.wanted.sum(1) == 1).all()


def test_the_gripper_moves_three_centimetres_per_unit_and_stays_in_its_workspace():
    env = make_env(PICK, 1, mapping=CUBE_STATES, limit=100)
    start = env.reset([0], [0]).state["state"][0, :3]
    action = torch.tensor([[[1.0, -1.0, 0.5, 1.0]]])
    env.step(action)
    settled = env.step(torch.tensor([[[0.0, 0.0, 0.0, 1.0]] * 4])).observation.state["state"][0, :3]
    torch.testing.assert_close(settled - start, torch.tensor([0.03, -0.03, 0.015]), rtol=0, atol=0.001)
    env.step(torch.full((1, 4, 4), 50.0))
    clipped = env.step(torch.tensor([[[0.0, 0.0, 0.0, 1.0]] * 4])).observation.state["state"][0, :3]
    limit = torch.minimum(settled + 4 * 0.03, torch.tensor([0.16, 0.20, 0.26]))
    env.close()
    torch.testing.assert_close(clipped, limit, rtol=0, atol=0.001)
