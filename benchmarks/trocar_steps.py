"""Steps per second of the trocar task: physics alone, and with its three 224x224 cameras at the ends of chunks of 16.

    python benchmarks/trocar_steps.py

Every environment replays one demonstration of the scripted expert, grasp and insertion included, and starts anew with
the same seed when its episode ends. Needs the extra `trocar`.
"""

from __future__ import annotations

import time

import torch

from regrasp.envs.contract import VecEnv
from regrasp.envs.mapping_config import MappingConfig, StateEntry
from regrasp.envs.mujoco.config import MujocoEnvConfig, MujocoInitParams
from regrasp.envs.registry import create_env
from results_file import save

TASK = "Regrasp-Assemble-Trocar-G129-Dex3-v0"
CHUNK = 16
SEED = 0
SECONDS = 5.0
REPEATS = 3
STATES = (StateEntry("robot_joint_state", (15, 29)), StateEntry("robot_dex3_joint_state"))
PHYSICS = MappingConfig(states=STATES)
CAMERAS = MappingConfig(
    main_images="front_camera", extra_view_images=("left_wrist_camera", "right_wrist_camera"), states=STATES
)


def start(num_envs: int, mapping: MappingConfig) -> VecEnv:
    """Start environments with this mapping."""
    config = MujocoEnvConfig(
        env_type="mujoco",
        total_num_envs=num_envs,
        max_episode_steps=256,
        init_params=MujocoInitParams(id=TASK),
        mapping=mapping,
    )
    return create_env(config, "train", CHUNK)


def demonstration() -> torch.Tensor:
    """Chunks (K, 16, A) of one successful episode of `SEED`."""
    env = start(1, PHYSICS)
    env.reset([0], [SEED])
    actions, success, done = [], False, False
    while not done:
        actions.append(env.expert_actions()[0])
        step = env.step(actions[-1][None, None])
        success, done = bool(step.success), bool(step.done)
    env.close()
    assert success
    missing = -len(actions) % CHUNK
    return torch.stack(actions + actions[-1:] * missing).unflatten(0, (-1, CHUNK))


def measure(env: VecEnv, chunks: torch.Tensor) -> float:
    """Steps per second over at least `SECONDS`, resets included."""
    count = env.spec.num_envs
    steps, started = 0, time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        env.reset(range(count), [SEED] * count)
        for chunk in chunks:
            steps += int(env.step(chunk.expand(count, -1, -1)).num_executed.sum())
    return steps / (time.perf_counter() - started)


def main() -> None:
    """Measure 1, 4 and 16 environments."""
    chunks = demonstration()
    rows = []
    for num_envs in (1, 4, 16):
        row: dict[str, int] = {"environments": num_envs}
        for name, mapping in (("physics steps/s", PHYSICS), ("with three cameras", CAMERAS)):
            env = start(num_envs, mapping)
            rates = sorted(measure(env, chunks) for _ in range(REPEATS))
            env.close()
            row[name] = round(rates[REPEATS // 2])
        row |= {"lowest": round(rates[0]), "highest": round(rates[-1])}
        rows.append(row)
    save("trocar_steps", "python benchmarks/trocar_steps.py", rows)


if __name__ == "__main__":
    main()
