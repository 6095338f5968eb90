"""What acts where nothing is learned: a policy, the task's expert, a function of the user's, no motion, or chance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from regrasp.envs.contract import Observation, VecEnv
from regrasp.envs.mapping import ActionMapping
from regrasp.errors import UserError
from regrasp.extras import load_named
from regrasp.rollout.episodes import Choose, NoiseKey
from regrasp.rollout.inference import Inference
from regrasp.seeding import KeyedNoise

Script = Callable[[Mapping[str, Any], Tensor], Any]
"""A function of the user's, see `script_chooser`."""


def policy_chooser(inference: Inference, mapping: ActionMapping, block: int) -> Choose:
    """Deterministic actions of a policy, inferred in blocks of `block` rows."""
    return lambda observation, _, keys: mapping(inference.act_in_blocks(observation, keys, block))


def expert_chooser(env: VecEnv, location: str = "env.eval") -> Choose:
    """The task's scripted expert, one step at a time.

    Raises:
        UserError: The task, which stands at `location`, has none.
    """
    if not env.capabilities.has_expert:
        raise UserError(
            f"Task {env.spec.task_id} has no scripted expert",
            key=f"{location}.init_params.id",
            value=env.spec.task_id,
            fix="pass --model_path <folder> to let a policy act; `collect --policy module:function` records a script",
        )
    return lambda _observation, rows, _keys: env.expert_actions()[rows][:, None]


def zero_chooser(env: VecEnv) -> Choose:
    """No motion, one step at a time."""
    return lambda _observation, rows, _keys: torch.zeros(len(rows), 1, env.spec.action_dim)


def random_chooser(env: VecEnv, seed: int) -> Choose:
    """Uniform actions in [-1, 1], one step at a time."""

    def choose(_observation: Observation, _rows: Tensor, keys: Sequence[NoiseKey]) -> Tensor:
        normal = KeyedNoise(seed, "eval", keys).normal("random", 1, env.spec.action_dim)
        return torch.special.ndtr(normal) * 2 - 1

    return choose


def script_chooser(name: str, env: VecEnv) -> Choose:
    """A function of the user's, `module:function`, in this process, one step at a time.

    It is called once per environment step as `function(observation, steps)`. `observation` is nested as Isaac Lab's,
    `observation["policy"]["eef_pos"]` (N, ...), CPU tensors of every observation that is no image and of the cameras
    that the mapping names. `steps` (N,) int64 counts the steps since each episode began: where it is 0, a new one has.
    It returns actions (N, A), a tensor or an array, as the task's own `step` takes them.

    Raises:
        UserError: There is no such function; on a call, what it returned is no such action.
    """
    function = load_script(name)
    env.share_vectors()
    steps = torch.zeros(env.spec.num_envs, dtype=torch.long)

    def choose(_observation: Observation, rows: Tensor, keys: Sequence[NoiseKey]) -> Tensor:
        steps.add_(1)
        steps[rows] = torch.tensor([decision for *_, decision in keys])
        actions = function(nested(env.raw_observation()), steps.clone())
        return _as_actions(actions, env, name)[rows][:, None]

    return choose


def one_step_at_a_time(choose: Choose, env: VecEnv) -> Choose:
    """The actions of `choose`, whose chunks are all of one length, handed out step by step."""
    chunks = torch.zeros(env.spec.num_envs, 1, env.spec.action_dim)

    def next_step(observation: Observation, rows: Tensor, keys: Sequence[NoiseKey]) -> Tensor:
        nonlocal chunks
        length = chunks.shape[1]
        steps = torch.tensor([step for *_, step in keys])
        places = torch.nonzero(steps % length == 0).flatten()
        if len(places):
            decisions = [
                (first, second, step // length) for first, second, step in map(keys.__getitem__, places.tolist())
            ]
            chosen = choose(observation.rows(places), rows[places], decisions)
            if chosen.shape[1] != length:
                chunks = torch.zeros(len(chunks), *chosen.shape[1:])
            chunks[rows[places]] = chosen
        return chunks[rows, steps % chunks.shape[1]][:, None]

    return next_step


def load_script(name: str) -> Script:
    """Import `module:function`, also from the working folder.

    Raises:
        UserError: There is no such module, or no such function in it.
    """
    expected = "expert, model, or module:function of a Python module that can be imported"
    function = load_named(name, key="--policy", expected=expected)
    if not callable(function):
        raise UserError(f"{name} is no function", key="--policy", value=name, expected=expected, fix="name a function")
    return function


def nested(observation: Mapping[str, Tensor]) -> dict[str, Any]:
    """`group/term` as dictionaries in dictionaries."""
    root: dict[str, Any] = {}
    for key, value in observation.items():
        *groups, term = key.split("/")
        node = root
        for group in groups:
            node = node.setdefault(group, {})
        node[term] = value
    return root


def _as_actions(returned: Any, env: VecEnv, name: str) -> Tensor:
    shape = (env.spec.num_envs, env.spec.action_dim)
    actions = torch.as_tensor(returned, dtype=torch.float32).detach().cpu()
    if tuple(actions.shape) != shape:
        raise UserError(
            "The script did not return an action for each environment",
            key="--policy",
            value=f"{name} returned {tuple(actions.shape)}",
            expected=f"{shape}: environments, and the width of the task's action",
            fix="correct the function",
        )
    return actions
