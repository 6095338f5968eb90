# pyright: reportMissingImports=false, reportIncompatibleMethodOverride=false
"""The environment of the tasks."""

from __future__ import annotations

from types import SimpleNamespace

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode


class ProxyArray:
    """How 3.x wraps its arrays."""

    def __init__(self, tensor):
        self.torch = tensor


class Env(gym.Env):
    """Freezes finished environments, or resets them at once and delivers their last observation."""

    device = "cpu"
    step_dt = 0.02
    single_action_space = gym.spaces.Box(-1, 1, (1,))

    def __init__(self, cfg, **kwargs):
        from isaaclab.app import running

        assert running == [cfg], "the simulation runs before the environment is built"
        assert cfg.presets == ["physics=newton_mjwarp"]
        self.cfg, self.num_envs = cfg, cfg.scene.num_envs
        self.freezes = getattr(cfg, "autoreset_mode", None) == AutoresetMode.DISABLED
        self.x = torch.zeros(self.num_envs)
        self.resets = torch.zeros(self.num_envs, dtype=torch.long)
        self.active = torch.zeros(self.num_envs, dtype=torch.bool)
        self.rewards = torch.zeros(self.num_envs)
        self.success = torch.zeros(self.num_envs, dtype=torch.bool)
        self.termination_manager = SimpleNamespace(active_terms=["success"], get_term=lambda name: self.success)

    def seed(self, seed):
        torch.manual_seed(seed)

    def observe(self):
        return {"policy": {"x": ProxyArray(self.x[:, None].clone()), "resets": self.resets[:, None].clone()}}

    def reset(self, env_ids=None, *, seed=None, options=None):
        rows = torch.arange(self.num_envs) if env_ids is None else env_ids
        self.seed(seed)
        self.x[rows] = 0
        self.resets[rows] += 1
        self.active[rows] = True
        return self.observe(), {}

    def step(self, actions):
        moves = actions[:, 0] * self.active if self.freezes else actions[:, 0]
        self.x += moves
        self.rewards[:] = self.x * (self.active if self.freezes else 1)
        self.success[:] = (self.x > 0.35) & (self.active if self.freezes else True)
        done = self.success.clone()
        extras = {}
        if self.freezes:
            self.active &= ~done
        else:
            assert self.cfg.compute_final_obs
            extras["final_obs"] = self.observe()
            self.x[done] = 0
            self.resets[done] += 1
        return self.observe(), ProxyArray(self.rewards), done, torch.zeros_like(done), extras

    def close(self):
        pass
