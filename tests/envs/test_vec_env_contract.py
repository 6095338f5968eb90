"""The contract of vector environments, kept by every simulator in the same way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import psutil
import pytest
import torch
from vec_envs import CUBE_STATES, PICK, STACK, TASKS, TOY, assert_same_observation, assert_same_step, entries, make_env
from vec_envs import random_actions as random

from regrasp.envs.contract import VecEnv
from regrasp.envs.mapping_config import MappingConfig
from regrasp.envs.process.vector import RemoteVecEnv
from regrasp.errors import TrainingHaltedError, UserError

LIMIT = 12
SEEDS = [3, 4, 5]
"""In the toy task these end after 5 (failing), 9 (succeeding) and LIMIT steps."""


@pytest.fixture(scope="module", params=TASKS)
def env(request: pytest.FixtureRequest) -> Iterator[RemoteVecEnv]:
    env = make_env(request.param, num_envs=3, num_workers=2, limit=LIMIT)
    yield env
    env.close()


@pytest.fixture(scope="module")
def toy() -> Iterator[RemoteVecEnv]:
    env = make_env(TOY, num_envs=3, num_workers=2, limit=LIMIT)
    yield env
    env.close()


def actions_for(env: VecEnv, steps: int, seed: int = 0) -> torch.Tensor:
    return random(seed, steps, env.spec.num_envs, env.spec.action_dim)


def test_shapes_and_dtypes_are_those_of_the_spec(env: VecEnv):
    spec = env.spec
    observation = env.reset([0, 1, 2], SEEDS)
    step = env.step(actions_for(env, 4))
    height, width, _ = next(s.shape for key, s in spec.raw_observations.items() if key.startswith("camera_images/"))
    for seen in (observation, step.observation):
        assert tuple(seen.images) == spec.cameras
        assert all(images.shape == (3, height, width, 3) for images in seen.images.values())
        assert all(images.dtype == torch.uint8 for images in seen.images.values())
        assert seen.state["state"].shape == (3, spec.state_dim)
        assert seen.state["state"].dtype == torch.float32
        assert len(seen.instruction) == 3
        assert set(seen.instruction) <= set(spec.instructions)
    assert step.rewards.shape == (3, 4)
    assert step.rewards.dtype == torch.float32
    assert step.num_executed.shape == (3,)
    assert step.num_executed.dtype == torch.int64
    for flag in (step.terminated, step.truncated, step.success, step.done):
        assert flag.shape == (3,)
        assert flag.dtype == torch.bool
    assert step.frames is None
    assert all(value.shape == (3,) and value.dtype == torch.float32 for value in step.info.values())
    assert env.expert_actions().shape == (3, spec.action_dim)
    assert env.expert_actions().dtype == torch.float32
    assert spec.max_episode_steps == LIMIT


def test_reset_returns_the_present_observation_of_all_environments(env: VecEnv):
    everything = env.reset([0, 1, 2], SEEDS)
    later = env.step(actions_for(env, 2)).observation
    some = env.reset([2, 0], [SEEDS[2], SEEDS[0]])
    assert_same_observation(some.rows([2, 0]), everything.rows([2, 0]))
    assert_same_observation(some.rows([1]), later.rows([1]))
    assert_same_observation(env.reset([], []), some)


def test_a_partial_reset_leaves_the_others_alone(env: VecEnv):
    env.reset([0, 1, 2], SEEDS)
    first = env.step(actions_for(env, 2)).observation
    env.reset([1], [77])
    state = env.state_dict()
    assert_same_observation(env.load_state_dict(state).rows([0, 2]), first.rows([0, 2]))


def test_only_images_change_under_a_later_call():
    """They are views of what the workers write into, so that nothing is copied that is only looked at."""
    env = make_env(TOY, num_envs=3, num_workers=2, limit=LIMIT, kind=RemoteVecEnv)
    first = env.reset([0, 1, 2], SEEDS)
    copy = first.clone()
    step = env.step(actions_for(env, 4))
    rewards, executed = step.rewards.clone(), step.num_executed.clone()
    assert_same_observation(first, replace(copy, images=step.observation.images))
    env.step(actions_for(env, 4, seed=1))
    env.close()
    assert torch.equal(step.rewards, rewards)
    assert torch.equal(step.num_executed, executed)
    assert step.observation.images["main"][:, 0, 0, 0].tolist() == [50, 80, 80], "still readable, and of the last step"


def test_one_chunk_of_four_equals_four_chunks_of_one(env: VecEnv):
    actions = actions_for(env, 12)
    env.reset([0, 1, 2], SEEDS)
    chunks = [env.step(actions[:, i : i + 4]) for i in range(0, 12, 4)]
    env.reset([0, 1, 2], SEEDS)
    singles = [env.step(actions[:, i : i + 1]) for i in range(12)]
    for i, chunk in enumerate(chunks):
        part = singles[4 * i : 4 * i + 4]
        assert torch.equal(chunk.rewards, torch.cat([single.rewards for single in part], 1))
        assert torch.equal(chunk.num_executed, torch.stack([single.num_executed for single in part]).sum(0))
        for name in ("terminated", "truncated", "success"):
            assert torch.equal(getattr(chunk, name), torch.stack([getattr(single, name) for single in part]).any(0))
        assert_same_observation(chunk.observation, part[-1].observation)


def test_an_episode_is_cut_at_the_limit_and_stays_ended_until_reset(env: VecEnv):
    env.reset([0, 1, 2], SEEDS)
    zero = torch.zeros(3, 4, env.spec.action_dim)
    executed = torch.zeros(3, dtype=torch.long)
    last = env.step(zero)
    for _ in range(3):
        executed += last.num_executed
        last = env.step(zero)
    executed += last.num_executed
    assert executed[2] == LIMIT
    before = last.observation
    rest = env.step(actions_for(env, 4))
    assert rest.num_executed.tolist() == [0, 0, 0]
    assert not rest.done.any()
    assert not rest.success.any()
    assert not rest.rewards.any()
    assert not any(value.any() for value in rest.info.values())
    assert not env.expert_actions().any()
    assert_same_observation(rest.observation, before)
    env.reset([1], [5])
    again = env.step(zero)
    assert again.num_executed.tolist() == [0, 4, 0]
    assert_same_observation(again.observation.rows([0, 2]), before.rows([0, 2]))


def test_before_the_first_reset_nothing_is_executed():
    env = make_env(TOY, num_envs=2)
    assert env.step(torch.ones(2, 3, 2)).num_executed.tolist() == [0, 0]
    env.close()


def test_an_end_inside_a_chunk(toy: VecEnv):
    """Seeds 3 and 4 end at steps 5 and 9: the second and first step of the second and third chunk."""
    toy.reset([0, 1, 2], SEEDS)
    actions = actions_for(toy, 12)
    toy.step(actions[:, :4])
    second = toy.step(actions[:, 4:8])
    assert second.num_executed.tolist() == [1, 4, 4]
    assert second.terminated.tolist() == [True, False, False]
    assert second.success.tolist() == [False, False, False]
    expected = actions[:, 4:8].sum(2)
    expected[0, 1:] = 0
    torch.testing.assert_close(second.rewards, expected)
    assert second.observation.state["state"][:, 2].tolist() == [5, 8, 8], "the clock of the true final observation"
    assert second.observation.images["main"][:, 0, 0, 0].tolist() == [50, 80, 80]
    third = toy.step(actions[:, 8:])
    assert third.num_executed.tolist() == [0, 1, 4]
    assert third.terminated.tolist() == [False, True, False]
    assert third.truncated.tolist() == [False, False, True]
    assert third.success.tolist() == [False, True, False]
    assert third.observation.state["state"][:, 2].tolist() == [5, 9, 12]
    assert third.done.tolist() == [False, True, True]


def test_a_task_that_ends_an_episode_at_the_limit_has_terminated_it():
    env = make_env(TOY, num_envs=1, limit=5)
    env.reset([0], [3])
    env.step(torch.zeros(1, 4, 2))
    last = env.step(torch.zeros(1, 4, 2))
    assert last.num_executed.tolist() == [1]
    assert last.terminated.tolist() == [True]
    assert last.truncated.tolist() == [False]
    env.close()


@pytest.mark.parametrize("task", [PICK, STACK])
def test_success_ends_a_cube_episode_inside_a_chunk_with_its_true_last_observation(task):
    """The chunked run is compared with single steps, by the expert's own actions."""
    env = make_env(task, num_envs=2, max_chunk=60, limit=60)
    first = env.reset([0, 1], [0, 1])
    actions, singles = [], []
    while not singles or not all(any(bool(s.done[i]) for s in singles) for i in range(2)):
        actions.append(env.expert_actions())
        singles.append(env.step(actions[-1][:, None]))
    chunk = torch.zeros(2, 60, 4)
    chunk[:, : len(actions)] = torch.stack(actions, 1)
    chunk[:, len(actions) :] = 1.0
    assert_same_observation(env.reset([0, 1], [0, 1]), first)
    step = env.step(chunk)
    env.close()
    lengths = [next(t for t, s in enumerate(singles) if s.done[i]) + 1 for i in range(2)]
    assert step.num_executed.tolist() == lengths
    assert step.terminated.all()
    assert step.success.all()
    assert not step.truncated.any()
    for i, length in enumerate(lengths):
        assert step.rewards[i].tolist() == [0.0] * (length - 1) + [1.0] + [0.0] * (60 - length)
        assert_same_observation(step.observation.rows([i]), singles[length - 1].observation.rows([i]))


@pytest.mark.parametrize("task", TASKS)
def test_episodes_do_not_depend_on_workers_number_or_neighbours(task):
    """Seed 4 alone; among three in one process; last of five over three processes, after another episode."""
    mapping = None if task == TOY else CUBE_STATES
    layouts = [(1, 1, 0), (3, 1, 1), (5, 3, 4)]
    outcomes = []
    for num_envs, num_workers, row in layouts:
        env = make_env(task, num_envs, num_workers, limit=LIMIT, mapping=mapping)
        if num_envs == 5:
            env.reset(range(5), range(100, 105))
            env.step(random(9, 3, 5, env.spec.action_dim))
        seeds = [50 + i for i in range(num_envs)]
        seeds[row] = 4
        observations = [env.reset(range(num_envs), seeds).rows([row])]
        rewards = []
        for t in range(4):
            actions = random(100 + t, 4, num_envs, env.spec.action_dim)
            actions[row] = random(t, 4, 1, env.spec.action_dim)[0]
            step = env.step(actions)
            observations.append(step.observation.rows([row]))
            rewards.append(step.rewards[row])
        env.close()
        outcomes.append((observations, torch.stack(rewards)))
    for observations, rewards in outcomes[1:]:
        assert torch.equal(rewards, outcomes[0][1])
        for ours, theirs in zip(observations, outcomes[0][0], strict=True):
            assert_same_observation(ours, theirs)


@pytest.mark.parametrize("task", [PICK, pytest.param(STACK, marks=pytest.mark.full)])
def test_images_do_not_depend_on_workers_or_neighbours(task):
    images = []
    for num_envs, num_workers, row in [(1, 1, 0), (3, 2, 2)]:
        env = make_env(task, num_envs, num_workers)
        seeds = [50 + i for i in range(num_envs)]
        seeds[row] = 4
        first = env.reset(range(num_envs), seeds).rows([row])
        last = env.step(random(0, 4, 1).expand(num_envs, -1, -1)).observation.rows([row])
        env.close()
        images.append((first, last))
    for ours, theirs in zip(*images, strict=True):
        assert_same_observation(ours, theirs)


def test_a_restored_run_continues_bit_for_bit(env: VecEnv):
    """Saved while one toy episode has ended, at a moment when cubes move, then restored over other episodes."""
    actions = actions_for(env, 12)
    env.reset([0, 1, 2], SEEDS)
    env.step(actions[:, :4])
    present = env.step(actions[:, 4:6]).observation
    state = {name: value.clone() for name, value in env.state_dict().items()}
    onwards = [env.step(actions[:, i : i + 2]) for i in (6, 8, 10)]
    env.reset([0, 1, 2], [91, 92, 93])
    env.step(actions[:, :3])
    assert_same_observation(env.load_state_dict(state), present)
    again = [env.step(actions[:, i : i + 2]) for i in (6, 8, 10)]
    for ours, theirs in zip(again, onwards, strict=True):
        assert_same_step(ours, theirs)
    assert {name: value.dtype for name, value in state.items()} == {"state": torch.float64}


@pytest.mark.parametrize("task", [PICK, STACK])
def test_a_restored_expert_continues_bit_for_bit_in_another_process(task):
    """The expert's own memory (its phase) is part of the state."""
    env = make_env(task, num_envs=2, num_workers=1, limit=60, mapping=CUBE_STATES)
    env.reset([0, 1], [7, 8])
    for _ in range(8):
        env.step(env.expert_actions()[:, None])
    state = env.state_dict()
    onwards = [env.step(env.expert_actions()[:, None]) for _ in range(20)]
    env.close()
    other = make_env(task, num_envs=2, num_workers=2, limit=60, mapping=CUBE_STATES)
    other.load_state_dict(state)
    again = [other.step(other.expert_actions()[:, None]) for _ in range(20)]
    other.close()
    for ours, theirs in zip(again, onwards, strict=True):
        assert_same_step(ours, theirs)


def test_a_state_of_another_number_of_environments_is_refused(toy: VecEnv):
    with pytest.raises(UserError, match="another simulator"):
        toy.load_state_dict({"state": toy.state_dict()["state"][:1]})


def test_a_simulator_that_cannot_save_its_state_says_so():
    env = make_env(TOY, num_envs=1, saves_state=False)
    assert not env.capabilities.saves_state
    with pytest.raises(AssertionError):
        env.state_dict()
    env.close()


def test_ignoring_terminations_runs_to_the_limit_and_still_tells_of_success():
    env = make_env(TOY, num_envs=2, limit=LIMIT, ignore_terminations=True)
    env.reset([0, 1], [3, 4])
    steps = [env.step(torch.ones(2, 4, 2)) for _ in range(3)]
    env.close()
    assert [step.num_executed.tolist() for step in steps] == [[4, 4]] * 3
    assert not any(step.terminated.any() for step in steps)
    assert [step.truncated.tolist() for step in steps] == [[False, False], [False, False], [True, True]]
    assert [step.success.tolist() for step in steps] == [[False, False], [False, False], [False, True]]


def test_instructions_belong_to_the_episode(env: VecEnv):
    seeds = list(range(30))
    texts = {seed: env.reset([0], [seed]).instruction[0] for seed in seeds}
    assert set(texts.values()) == set(env.spec.instructions), "every instruction occurs"
    env.reset([0, 1, 2], [7, 8, 9])
    step = env.step(actions_for(env, 1))
    assert step.observation.instruction == [texts[7], texts[8], texts[9]]


def test_recorded_frames_are_those_of_the_rows_asked_for_in_ascending_order(toy: VecEnv):
    toy.reset([0, 1, 2], SEEDS)
    toy.record([2, 0], height=8, width=5)
    chunks = [toy.step(torch.zeros(3, 4, 2)) for _ in range(2)]
    for number, step in enumerate(chunks):
        assert step.frames is not None
        assert step.frames.shape == (2, 4, 8, 5, 3)
        assert step.frames.dtype == torch.uint8
        for position, row in enumerate((0, 2)):
            length = int(step.num_executed[row])
            corner = step.frames[position, :length, 0, 0].tolist()
            assert corner == [[SEEDS[row], 4 * number + t + 1, 255] for t in range(length)]
    assert chunks[1].num_executed.tolist() == [1, 4, 4]
    toy.record([1], height=8, width=5)
    only = toy.step(torch.zeros(3, 2, 2)).frames
    assert only is not None
    assert only.shape == (1, 2, 8, 5, 3)
    assert only[0, 0, 0, 0].tolist() == [4, 9, 255]
    toy.record([])
    assert toy.step(torch.zeros(3, 1, 2)).frames is None


@pytest.mark.parametrize("task", [PICK, pytest.param(STACK, marks=pytest.mark.full)])
def test_recording_changes_nothing_and_shows_every_step(task):
    actions = random(0, 4, 2)
    env = make_env(task, num_envs=2, num_workers=1)
    env.reset([0, 1], [1, 2])
    plain = env.step(actions)
    env.reset([0, 1], [1, 2])
    env.record([1], height=48, width=64)
    recorded = env.step(actions)
    env.close()
    assert_same_step(recorded, plain)
    frames = recorded.frames
    assert frames is not None
    assert frames.shape == (1, 4, 48, 64, 3)
    assert frames.float().std() > 20
    assert all((frames[0, t] != frames[0, t + 1]).any() for t in range(3))


def test_recording_again_and_again_keeps_no_memory(toy: VecEnv):
    """Evaluations start and stop recordings often; each has its own shared memory."""
    assert isinstance(toy, RemoteVecEnv)
    processes = [psutil.Process(), *(psutil.Process(worker.pid) for worker in toy._workers)]
    toy.record([0, 2], 64, 64)
    before = [process.num_fds() for process in processes]
    for _ in range(5):
        toy.record([0, 1, 2], 64, 64)
        toy.record([])
        toy.record([0, 2], 64, 64)
    assert [process.num_fds() for process in processes] == before
    mapped = [m.path for p in processes[1:] for m in p.memory_maps(grouped=False) if "/dev/shm" in m.path]
    assert len(mapped) == 2 * 2, "each worker maps its observations and one recording"
    toy.record([])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_actions_that_are_not_finite_stop_the_run(toy: VecEnv, value: float):
    actions = torch.zeros(3, 2, 2)
    actions[1, 1, 0] = value
    with pytest.raises(TrainingHaltedError, match="environment 1"):
        toy.step(actions)


@pytest.mark.parametrize("shape", [(3, 4, 3), (2, 4, 2), (3, 5, 2)])
def test_actions_of_another_shape_are_refused(toy: VecEnv, shape: tuple[int, ...]):
    with pytest.raises(AssertionError):
        toy.step(torch.zeros(shape))


@pytest.mark.parametrize("env_ids", [[3], [-1]])
def test_unknown_environments_are_refused(toy: VecEnv, env_ids: list[int]):
    with pytest.raises(AssertionError):
        toy.reset(env_ids, [0])
    with pytest.raises(AssertionError):
        toy.record(env_ids)


@pytest.mark.parametrize(("num_envs", "num_workers", "workers"), [(1, 4, 1), (5, 2, 2), (3, 3, 3)])
def test_environments_are_split_over_the_workers(num_envs: int, num_workers: int, workers: int):
    env = make_env(TOY, num_envs, num_workers)
    assert len(env._workers) == workers
    observation = env.reset(range(num_envs), range(num_envs))
    env.close()
    assert len(observation) == num_envs


def test_the_simulators_process_does_not_import_torch():
    """Its interpreter may be one that has none."""
    env = make_env(TOY, num_envs=1, mapping=MappingConfig(states=entries("imported_torch")))
    assert env.reset([0], [0]).state["state"].tolist() == [[0.0]]
    env.close()


def test_without_cameras_and_states_observations_are_empty_not_missing():
    env = make_env(TOY, num_envs=2, mapping=MappingConfig())
    observation = env.reset([0, 1], [0, 1])
    env.close()
    assert observation.images == {}
    assert observation.state["state"].shape == (2, 0)
    assert len(observation) == 2
