"""One run of stable-baselines3, for `compare_sb3.py`: task, algorithm, seed, steps, episodes, file of the result.

Needs stable-baselines3 and gymnasium alone. The settings are those of its RL Zoo for Pendulum-v1, without its
state-dependent exploration for PPO.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gymnasium
import stable_baselines3  # pyright: ignore[reportMissingImports]
import torch
from stable_baselines3.common.env_util import make_vec_env  # pyright: ignore[reportMissingImports]


def main() -> None:
    """Train and evaluate."""
    task, algorithm, seed, steps, episodes, file = sys.argv[1:]
    torch.set_num_threads(1)
    envs = make_vec_env(task, n_envs=4, seed=int(seed))
    if algorithm == "sac":
        settings = {"learning_rate": 1e-3, "buffer_size": 100_000, "gradient_steps": -1, "learning_starts": 100}
        model = stable_baselines3.SAC("MlpPolicy", envs, seed=int(seed), device="cpu", **settings)
    else:
        settings = {"learning_rate": 1e-3, "n_steps": 1024, "n_epochs": 10, "gamma": 0.9, "gae_lambda": 0.95}
        model = stable_baselines3.PPO("MlpPolicy", envs, seed=int(seed), device="cpu", clip_range=0.2, **settings)
    model.learn(int(steps))
    env, returns = gymnasium.make(task), []
    for episode in range(int(episodes)):
        observation, _ = env.reset(seed=1_000_000 + episode)
        total, over = 0.0, False
        while not over:
            action, _ = model.predict(observation, deterministic=True)
            observation, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    result = {"return": sum(returns) / len(returns), "steps": model.num_timesteps, "settings": settings}
    Path(file).write_text(json.dumps({**result, "version": stable_baselines3.__version__}) + "\n")


if __name__ == "__main__":
    main()
