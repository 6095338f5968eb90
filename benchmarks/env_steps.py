"""Environment steps per second: chunks of 4 steps, one 84x84 camera rendered at the end of each chunk.

    python benchmarks/env_steps.py

Every environment takes random actions and starts anew when its episode ends. "with policy" adds the tiny GR00T's
inference (random weights) on the camera images between the chunks, as in a rollout.
"""

from __future__ import annotations

import time

import torch

from policies import experiment, random_policy
from regrasp.envs.contract import VecEnv
from regrasp.envs.registry import create_env
from regrasp.models.contract import Policy
from regrasp.seeding import KeyedNoise
from results_file import save

CHUNK = 4
SECONDS = 3.0
REPEATS = 3


def measure(env: VecEnv, policy: Policy | None) -> float:
    """Steps per second over `SECONDS`, resets included."""
    count = env.spec.num_envs
    observation = env.reset(range(count), [2 * i for i in range(count)])
    generator = torch.Generator().manual_seed(0)
    steps, seed, decisions = 0, count, 0
    started = time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        actions = torch.rand(count, CHUNK, env.spec.action_dim, generator=generator) * 2 - 1
        if policy is not None:
            with torch.no_grad():
                features = policy.encode(policy.prepare(observation))
                noise = KeyedNoise(0, "train", [(row, 0, decisions) for row in range(count)])
                policy.act(features, noise)
        step = env.step(actions)
        decisions += 1
        steps += int(step.num_executed.sum())
        observation = step.observation
        ended = torch.nonzero(step.done).flatten().tolist()
        if ended:
            seeds = [2 * (seed + i) for i in range(len(ended))]
            observation = env.reset(ended, seeds)
            seed += len(ended)
    return steps / (time.perf_counter() - started)


def main() -> None:
    """Measure 1, 8, 32 and 128 environments."""
    rows = []
    for num_envs in (1, 8, 32, 128):
        config = experiment([f"env.train.total_num_envs={num_envs}"])
        policy = random_policy(config, trainable="head_without_context").eval()
        env = create_env(config.env.train, "train", CHUNK)
        measure(env, policy)
        alone = sorted(measure(env, None) for _ in range(REPEATS))
        with_policy = sorted(measure(env, policy) for _ in range(REPEATS))
        env.close()
        rows.append(
            {
                "environments": num_envs,
                "steps/s": round(alone[REPEATS // 2]),
                "steps/s with policy": round(with_policy[REPEATS // 2]),
                "lowest": round(with_policy[0]),
                "highest": round(with_policy[-1]),
            }
        )
    save("env_steps", "python benchmarks/env_steps.py", rows)


if __name__ == "__main__":
    main()
