# pyright: reportMissingImports=false, reportIncompatibleMethodOverride=false
"""Tasks of Isaac Lab 3.x: a point that its action moves, which succeeds beyond 0.35."""

from __future__ import annotations

from types import SimpleNamespace

import gymnasium as gym
from gymnasium.vector import AutoresetMode


class Config(SimpleNamespace):
    def __init__(self, **features):
        super().__init__(
            seed=None,
            scene=SimpleNamespace(num_envs=1),
            sim=SimpleNamespace(device="cuda:0", dt=0.01),
            decimation=2,
            episode_length_s=9.0,
            **features,
        )


for name, features in {
    "Point-Freezing": {"autoreset_mode": AutoresetMode.SAME_STEP, "compute_final_obs": False},
    "Point-Final": {"compute_final_obs": False},
}.items():
    gym.register(
        name,
        "isaaclab_tasks.point:Env",
        disable_env_checker=True,
        kwargs={"env_cfg_entry_point": lambda features=features: Config(**features)},
    )
