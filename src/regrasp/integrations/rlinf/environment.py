"""Regrasp's environments behind RLinf's interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from regrasp.config.parse import parse
from regrasp.envs.config import EnvName, TrainEnvConfig
from regrasp.envs.contract import STATE, Observation, Step
from regrasp.envs.mapping import ActionMapping
from regrasp.envs.registry import EnvTypes, create_env, unknown_env_type
from regrasp.seeding import episode_seed

_OWN_OF_RLINF = ("num_envs", "max_episode_steps", "task_description")
"""Keys of `init_params` that say the same as others."""


class RegraspEnv:
    """N environments as `env.train` or `env.eval` says, with overrides applied: RLinf hands over the block it resolved.

    An environment that ends inside a chunk stops there, and its final observation is the true one. With `auto_reset` it
    has begun its next episode when the chunk returns, as RLinf expects; otherwise it rests until `reset`.

    Args:
        cfg: RLinf's block. `regrasp_env_type` in it names another simulator of Regrasp's than Isaac Lab.
        num_envs: N.
        seed_offset: Number of these environments among all of the run; their episodes differ by it.
        total_num_processes: Not used: `seed_offset` says all.
        worker_info: Not used.

    Raises:
        UserError: The block is wrong, or the simulator refuses it.
    """

    def __init__(
        self, cfg: DictConfig, num_envs: int, seed_offset: int, total_num_processes: int, worker_info: Any
    ) -> None:
        self.cfg = cfg
        self.video_cfg = cfg.get("video_cfg")
        self.num_envs = num_envs
        self.name: EnvName = "eval" if cfg.get("is_eval", False) else "train"
        self.config = env_block(cfg, num_envs, self.name)
        self.seed = self.config.seed + seed_offset
        self.auto_reset = self.config.auto_reset
        self.device = torch.device("cpu")
        self.is_start = True
        self._env = create_env(self.config, self.name, self.config.max_episode_steps, self.seed)
        self.metadata = {"render_fps": round(1 / self._env.spec.step_seconds)}
        self._actions: ActionMapping | None = None
        self._episodes = torch.zeros(num_envs, dtype=torch.long)
        self._begin_counts(range(num_envs))

    def reset(self, seed: int | None = None, env_ids: Tensor | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode in `env_ids`, or in all; `seed` replaces that of the block from now on."""
        self.seed = self.seed if seed is None else seed
        rows = list(range(self.num_envs)) if env_ids is None else env_ids.tolist()
        return self._observed(self._begin(rows)), {}

    def step(
        self, actions: Any, auto_reset: bool = True
    ) -> tuple[dict[str, Any], Tensor, Tensor, Tensor, dict[str, Any]]:
        """Execute one action (N, A); returns observation, rewards, terminations and truncations (N,), and infos."""
        observation, rewards, terminations, truncations, infos = self._chunk(
            torch.as_tensor(actions)[:, None], self.auto_reset and auto_reset
        )
        return observation, rewards[:, 0], terminations[:, 0], truncations[:, 0], infos

    def chunk_step(
        self, chunk_actions: Any
    ) -> tuple[list[dict[str, Any]], Tensor, Tensor, Tensor, list[dict[str, Any]]]:
        """Execute a chunk (N, T, A): observations and infos of its end, rewards and flags (N, T)."""
        observation, *tensors, infos = self._chunk(torch.as_tensor(chunk_actions), self.auto_reset)
        rewards, terminations, truncations = tensors
        return [observation], rewards, terminations, truncations, [infos]

    def _chunk(
        self, actions: Tensor, auto_reset: bool
    ) -> tuple[dict[str, Any], Tensor, Tensor, Tensor, dict[str, Any]]:
        if self._actions is None:
            location = f"env.{self.name}.mapping"
            self._actions = ActionMapping(self.config.mapping, actions.shape[2], self._env.spec.action_dim, location)
        step = self._env.step(self._actions(actions.float().cpu()))
        self._count(step)
        observation, infos = self._observed(step.observation), {"episode": self._measures()}
        done = step.done
        if auto_reset and done.any():
            final = observation
            observation = self._observed(self._begin(torch.nonzero(done).flatten().tolist()))
            infos = {
                "final_observation": final,
                "final_info": infos,
                "_final_observation": done,
                "_final_info": done,
            }
        ends = self._at_end(step, actions.shape[1], last=auto_reset or self.config.ignore_terminations)
        return observation, step.rewards, *ends, infos

    @staticmethod
    def _at_end(step: Step, length: int, *, last: bool) -> tuple[Tensor, Tensor]:
        """Flags (N, T) from the step in which an episode ended to the chunk's last, or in the last alone.

        RLinf masks what follows the first flag, and counts an episode of an evaluation by the last.
        """
        first = torch.full_like(step.num_executed, length) if last else step.num_executed.clamp(min=1)
        over = torch.arange(1, length + 1) >= first[:, None]
        return over & step.terminated[:, None], over & step.truncated[:, None]

    def _begin(self, rows: Sequence[int]) -> Observation:
        seeds = [episode_seed(self.seed, self.name, row, int(self._episodes[row])) for row in rows]
        self._episodes[rows] += 1
        self._begin_counts(rows)
        return self._env.reset(rows, seeds)

    def _begin_counts(self, rows: Sequence[int]) -> None:
        if len(rows) == self.num_envs:
            self.elapsed_steps = torch.zeros(self.num_envs, dtype=torch.int32)
            self._returns = torch.zeros(self.num_envs)
            self._success = torch.zeros(self.num_envs, dtype=torch.bool)
            return
        for counts in (self.elapsed_steps, self._returns, self._success):
            counts[list(rows)] = 0

    def _count(self, step: Step) -> None:
        self.elapsed_steps += step.num_executed.int()
        self._returns += step.rewards.sum(1)
        self._success |= step.success

    def _measures(self) -> dict[str, Tensor]:
        """RLinf's metrics of the present episodes; success is the task's own."""
        return {
            "success_once": self._success.clone(),
            "return": self._returns.clone(),
            "episode_len": self.elapsed_steps.clone(),
            "reward": self._returns / self.elapsed_steps.clamp(min=1),
        }

    def _observed(self, observation: Observation) -> dict[str, Any]:
        """As RLinf names it, in memory of its own."""
        main, *extra = (images.clone() for images in observation.images.values()) if observation.images else (None,)
        return {
            "main_images": main,
            "extra_view_images": torch.stack(extra, 1) if extra else None,
            "wrist_images": None,
            "states": observation.state[STATE].clone(),
            "task_descriptions": list(observation.instruction),
        }

    def update_reset_state_ids(self) -> None:
        """RLinf's call between rollouts: every episode has its own seed here, so there is nothing to draw."""

    def close(self) -> None:
        """Stop the simulator."""
        self._env.close()


def env_block(cfg: DictConfig, num_envs: int, name: EnvName) -> TrainEnvConfig:
    """RLinf's block as Regrasp's; what RLinf itself does with a key (videos, rewards) is left to it.

    Raises:
        UserError: A value of the mapping or of `init_params` is wrong.
    """
    values = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(values, dict)
    env_type = str(values.get("regrasp_env_type", values.get("env_type")))
    known = EnvTypes()
    if env_type not in known:
        raise unknown_env_type(env_type, f"env.{name}")
    kind = known[env_type].train
    init, mapping = dict(values["init_params"]), _mapping(values)
    mapping.setdefault("task_description", init.get("task_description"))
    own = {field.name for field in fields(kind)} - {"video_cfg"}
    content = {str(key): value for key, value in values.items() if key in own}
    steps = content.get("max_steps_per_rollout_epoch", content.get("max_episode_steps"))
    content |= {
        "env_type": env_type,
        "total_num_envs": num_envs,
        "max_steps_per_rollout_epoch": steps,
        "init_params": {key: value for key, value in init.items() if key not in _OWN_OF_RLINF},
        "mapping": mapping,
    }
    return parse(kind, content, file="RLinf's configuration", key=f"env.{name}")


def _mapping(values: Mapping[Any, Any]) -> dict[str, Any]:
    block = values.get("isaaclab") or values.get("mapping") or {}
    return {key: value for key, value in block.items() if value is not None}
