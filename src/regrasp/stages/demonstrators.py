"""What acts in demonstrations: the task's scripted expert, a trained policy, or a function of the user's."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regrasp.engine.acting import policy_to_evaluate
from regrasp.engine.policies import choose_device, create_policy
from regrasp.envs.contract import Observation, VecEnv
from regrasp.envs.mapping import ActionMapping
from regrasp.errors import UserError
from regrasp.experiment import ExperimentConfig
from regrasp.rollout.inference import RolloutWorker

Act = Callable[[Observation, Sequence[int], int, Tensor], Tensor]
"""(observation of N environments, the index of each one's episode, the step in the episode, (N,) bool of those that are
still in it) to simulator actions (N, A)."""
Script = Callable[[Mapping[str, Any], Tensor], Any]
"""A function of the user's, see `script_demonstrator`."""


@dataclass(frozen=True)
class Demonstrator:
    """Acts in all environments at once; their episodes begin together."""

    name: str
    """For messages."""
    act: Act
    noisy: bool = False
    """What is executed has noise on it (`collect.action_noise`): it is asked anew every step, so it corrects it."""


def expert_demonstrator(env: VecEnv) -> Demonstrator:
    """The task's scripted expert.

    Raises:
        UserError: It has none.
    """
    if not env.capabilities.has_expert:
        raise UserError(
            f"Task {env.spec.task_id} has no scripted expert",
            key="env.train.init_params.id",
            value=env.spec.task_id,
            mend="pass --model_path <folder> to record a policy, or --policy module:function to record a script",
        )
    return Demonstrator("expert", lambda *_: env.expert_actions(), noisy=True)


def policy_demonstrator(config: ExperimentConfig, env: VecEnv, seed: int) -> Demonstrator:
    """The policy of `actor.model.model_path`: deterministic actions, each chunk played to its end.

    Raises:
        UserError: There is no such folder, or the policy does not fit the environments.
    """
    model, mapping = config.actor.model, config.env.train.mapping
    device = choose_device()
    policy = policy_to_evaluate(create_policy(model, mapping, env.spec, seed), config, device)
    rollout = RolloutWorker(policy, seed, "data", device=device, keep_features=True)
    place = ActionMapping(mapping, model.action_dim, env.spec.action_dim, "env.train.mapping")
    return Demonstrator("policy", _ChunkPlayer(rollout, place, config.env.eval.inference_block))


class _ChunkPlayer:
    """Decides where a chunk has been played, for the environments that are still in their episode."""

    def __init__(self, rollout: RolloutWorker, mapping: ActionMapping, block: int) -> None:
        self._rollout, self._mapping, self._block = rollout, mapping, block
        self._chunk = torch.zeros(0, 1, 0)

    def __call__(self, observation: Observation, episodes: Sequence[int], step: int, running: Tensor) -> Tensor:
        decision, position = divmod(step, self._chunk.shape[1])
        if position == 0:
            rows = torch.nonzero(running).flatten()
            keys = [(episodes[row], 0, decision) for row in rows.tolist()]
            chosen = self._mapping(self._rollout.act_in_blocks(observation.rows(rows), keys, self._block))
            self._chunk = torch.zeros(len(observation), *chosen.shape[1:])
            self._chunk[rows] = chosen
        return self._chunk[:, position]


def script_demonstrator(name: str, env: VecEnv) -> Demonstrator:
    """A function of the user's, `module:function`, in this process.

    It is called once per environment step as `function(observation, steps)`. `observation` is nested as Isaac Lab's,
    `observation["policy"]["eef_pos"]` (N, ...), CPU tensors of every observation that is no image and of the cameras
    that the mapping names. `steps` (N,) int64 counts the steps since each episode began: where it is 0, a new one has.
    It returns actions (N, A), a tensor or an array, as the task's own `step` takes them.

    Raises:
        UserError: There is no such function; on a call, what it returned is no such action.
    """
    function = load_script(name)
    env.share_vectors()

    def act(_observation: Observation, _episodes: Sequence[int], step: int, _running: Tensor) -> Tensor:
        steps = torch.full((env.spec.num_envs,), step)
        return _as_actions(function(nested(env.raw_observation()), steps), env, name)

    return Demonstrator(f"script {name}", act)


def load_script(name: str) -> Script:
    """Import `module:function`, also from the working folder.

    Raises:
        UserError: There is no such module, or no such function in it.
    """
    module_name, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise _no_script(
            name, f"There is no module '{error.name}'", "correct the name, or call from its folder"
        ) from None
    function = getattr(module, attribute, None)
    if not callable(function):
        found = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise _no_script(name, f"{module_name} has no function '{attribute}'", f"it has {', '.join(found) or 'none'}")
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
            mend="correct the function",
        )
    return actions


def _no_script(name: str, problem: str, mend: str) -> UserError:
    return UserError(
        problem,
        key="--policy",
        value=name,
        expected="expert, model, or module:function of a Python module that can be imported",
        mend=mend,
    )
