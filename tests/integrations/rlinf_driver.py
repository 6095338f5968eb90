"""Runs inside RLinf's own Python: its loader, tables and environment worker on Regrasp's extension; prints JSON."""

from __future__ import annotations

import inspect
import json
import os
import sys
from types import SimpleNamespace
from typing import Any

import torch
from omegaconf import OmegaConf
from rlinf.envs import get_env_cls, isaaclab  # pyright: ignore[reportMissingImports]
from rlinf.models.embodiment.gr00t import simulation_io  # pyright: ignore[reportMissingImports]
from rlinf.scheduler.worker.worker import Worker  # pyright: ignore[reportMissingImports]
from rlinf.workers.env.env_worker import EnvWorker  # pyright: ignore[reportMissingImports]

from regrasp.envs.registry import create_env
from regrasp.integrations.rlinf.environment import RegraspEnv

STOCK = "Isaac-Stack-Cube-Franka-IK-Rel-Visuomotor-Rewarded-v0"
CHUNK, NUM_ENVS, NUM_CHUNKS = 4, 3, 8


def configuration(auto_reset: bool) -> Any:
    block = {
        "env_type": "isaaclab",
        "regrasp_env_type": "mujoco",
        "auto_reset": auto_reset,
        "ignore_terminations": False,
        "max_episode_steps": 10,
        "max_steps_per_rollout_epoch": 40,
        "seed": 3,
        "num_workers": 1,
        "use_rel_reward": False,
        "video_cfg": {"save_video": False},
        "init_params": {"id": "Regrasp-Pick-Cube-v0", "num_envs": None},
        "isaaclab": {
            "main_images": "camera_images/front_camera",
            "extra_view_images": ["camera_images/wrist_camera"],
            "states": ["policy/gripper_position", {"key": "policy/gripper_opening", "slice": [0, 1]}],
            "action_mapping": {"scale": 0.5},
        },
    }
    model = {"model_type": "mlp_policy", "num_action_chunks": CHUNK, "action_dim": 4}
    return OmegaConf.create({"env": {"train": block, "eval": block}, "actor": {"model": model}})


def worker(cfg: Any) -> Any:
    """What of RLinf's worker its environment steps use; its methods are RLinf's."""
    made = SimpleNamespace(
        cfg=cfg,
        stage_num=1,
        _rank=0,
        _world_size=1,
        worker_info=None,
        model_cfg=cfg.actor.model,
        use_external_reward_model=False,
    )
    cls = get_env_cls("isaaclab", cfg.env.train)
    assert cls is RegraspEnv
    made.env_list = EnvWorker._setup_env_and_wrappers(made, cls, cfg.env.train, NUM_ENVS)
    return made


def play(auto_reset: bool) -> dict[str, Any]:
    made = worker(configuration(auto_reset))
    (env,) = made.env_list
    generator = torch.Generator().manual_seed(0)
    observation, _ = env.reset()
    mirror = create_env(env.config, "train", 10, 0)
    from regrasp.seeding import episode_seed

    episodes = [0] * NUM_ENVS

    def begin(rows: list[int]) -> Any:
        seeds = [episode_seed(3, "train", row, episodes[row]) for row in rows]
        for row in rows:
            episodes[row] += 1
        return mirror.reset(rows, seeds)

    seen, ended = begin(list(range(NUM_ENVS))), 0
    for _ in range(NUM_CHUNKS):
        assert torch.equal(observation["states"], seen.state["state"])
        assert torch.equal(observation["main_images"], seen.images["main"])
        assert torch.equal(observation["extra_view_images"][:, 0], seen.images["extra_0"])
        assert list(observation["task_descriptions"]) == seen.instruction
        actions = torch.rand(NUM_ENVS, CHUNK, 4, generator=generator) * 2 - 1
        output, info = inspect.unwrap(EnvWorker.env_interact_step)(made, actions.numpy().copy(), 0)
        step = mirror.step(actions * 0.5)
        seen = step.observation
        assert torch.equal(output.rewards, step.rewards)
        assert torch.equal(output.dones.any(1), step.done)
        if step.done.any() and auto_reset:
            assert torch.equal(output.final_obs["states"], seen.state["state"]), "the true final observation"
            assert info["episode_len"].tolist() == [10] * int(step.done.sum())
            seen = begin(torch.nonzero(step.done).flatten().tolist())
        ended += int(step.done.sum())
        observation = output.obs
    env.close()
    mirror.close()
    return {"ended": ended}


def main() -> None:
    os.environ["RLINF_EXT_MODULE"] = "regrasp.integrations.rlinf"
    os.environ["RLINF_CONFIG_FILE"] = sys.argv[1]
    stock = isaaclab.REGISTER_ISAACLAB_ENVS[STOCK]
    Worker._load_user_extensions(SimpleNamespace())  # pyright: ignore[reportArgumentType]
    extended = isaaclab.REGISTER_ISAACLAB_ENVS
    actions = getattr(simulation_io, "ACTION_CONVERSION_N1D5", None) or simulation_io.ACTION_CONVERSION
    observed = {
        "main_images": torch.zeros(2, 8, 8, 3, dtype=torch.uint8),
        "extra_view_images": torch.ones(2, 2, 8, 8, 3, dtype=torch.uint8),
        "states": torch.arange(56.0).view(2, 28),
        "task_descriptions": ["assemble", "assemble"],
    }
    name = sys.argv[2]
    converted = simulation_io.OBS_CONVERSION[name](observed)
    parts = {"action.b": torch.ones(2, 6, 3).numpy(), "action.a": torch.zeros(2, 6, 2).numpy()}
    print(
        json.dumps(
            {
                "stock_kept": extended[STOCK] is stock,
                "any_task": get_env_cls("isaaclab", OmegaConf.create({"init_params": {"id": "Isaac-New-v0"}})).__name__,
                "converted": {key: getattr(value, "shape", value) for key, value in converted.items()},
                "states": {key: value[0, 0].tolist() for key, value in converted.items() if key.startswith("state.")},
                "action": actions[name](parts, chunk_size=4)[0, 0].tolist(),
                "played": [play(auto_reset) for auto_reset in (False, True)],
            }
        )
    )


if __name__ == "__main__":
    main()
