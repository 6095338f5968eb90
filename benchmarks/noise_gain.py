"""How much of a denoising step's exploration noise is left in the actions, by denoising step and frequency.

    python benchmarks/noise_gain.py --config_name trocar_ppo_groot --model_path base

The denoising steps after the stochastic one take noise for noise and remove it. A frequency is one of the discrete
cosine transform over a chunk, 0 the constant one. The gain is the slope of the normalised actions over the noise added,
over decisions that the policy meets in training episodes. "spread" is the standard deviation that the initial noise
causes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tensordict import TensorDict
from torch import Tensor

from regrasp.algorithms import flow
from regrasp.algorithms.noise_color import NoiseColor
from regrasp.engine.policies import create_policy
from regrasp.envs.mapping import ActionMapping
from regrasp.envs.registry import create_env
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.load import load_config
from regrasp.models.groot.policy import GrootPolicy
from regrasp.seeding import KeyedNoise
from results_file import save

NUM_ENVS = 16
LEVEL = 0.25
FREQUENCIES = (0, 1, 2, 4, 8)


@torch.no_grad()
def decisions(config: ExperimentConfig) -> tuple[GrootPolicy, TensorDict]:
    """The policy, and the features of every decision of one episode in each of `NUM_ENVS` environments."""
    env = create_env(config.env.train, "train", config.actor.model.num_action_chunks)
    policy = create_policy(config.actor.model, config.env.train.mapping, env.spec, config.actor.seed)
    assert isinstance(policy, GrootPolicy)
    mapping = ActionMapping(
        config.env.train.mapping, config.actor.model.action_dim, env.spec.action_dim, "env.train.mapping"
    )
    observation, running, features = env.reset(range(NUM_ENVS), range(NUM_ENVS)), torch.ones(NUM_ENVS).bool(), []
    while running.any():
        encoded = policy.encode(policy.prepare(observation))
        noise = KeyedNoise(0, "train", [(row, 0, len(features)) for row in range(NUM_ENVS)])
        step = env.step(mapping(policy.act(encoded, noise, deterministic=True).actions))
        features.append(encoded[running])
        observation, running = step.observation, running & ~step.done
    env.close()
    return policy, torch.cat(features)


def frequencies(chunks: Tensor) -> Tensor:
    """Chunks (B, H, A) in the basis of the discrete cosine transform, the eigenvectors of any color."""
    horizon = chunks.shape[1]
    _, basis = torch.linalg.eigh(NoiseColor(1.0, horizon).covariance)
    return basis.flip(1).T @ chunks


@torch.no_grad()
def main() -> None:
    """Measure every denoising step."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config_name", default="trocar_ppo_groot")
    parser.add_argument("--model_path", type=Path, default=Path("base"))
    options = parser.parse_args()
    path = options.model_path.resolve()
    settings = [f"actor.model.model_path={path}", f"env.train.total_num_envs={NUM_ENVS}"]
    head = "actor.model.rl_head_config"
    config = load_config(
        options.config_name, [*settings, f"{head}.noise_color=0.0", f"{head}.ignore_last=false"]
    ).config
    policy, features = decisions(config)
    shape = (len(features), policy.spec.action_horizon, policy.config.action_head_cfg.max_action_dim)
    generator = torch.Generator().manual_seed(0)

    def sampled(initial: Tensor, noise: Tensor | None, step: int) -> Tensor:
        steps = torch.full((len(features),), step)
        chunk = policy._sample(features["context"], features["state"], initial, noise, steps, LEVEL)[0]
        return frequencies(chunk)[..., : policy.settings.action_dim]

    def normal() -> Tensor:
        return torch.randn(shape, generator=generator)

    initial = normal()
    clean = sampled(initial, None, 0)
    spread = (sampled(normal(), None, 0) - clean).square().mean((0, 2)).sqrt() / 2**0.5
    rows = [{"denoising step": "spread", **{f"frequency {k}": float(spread[k]) for k in FREQUENCIES}}]
    for step in range(policy.settings.denoising_steps):
        white = normal()
        noise, moved = frequencies(white)[..., : policy.settings.action_dim], sampled(initial, white, step) - clean
        noise *= flow.flow_sde_step(white[:1], white[:1], step, policy.settings.denoising_steps, LEVEL).std
        gain = (noise * moved).sum((0, 2)) / noise.square().sum((0, 2))
        rows.append({"denoising step": str(step), **{f"frequency {k}": float(gain[k]) for k in FREQUENCIES}})
    command = f"python benchmarks/noise_gain.py --config_name {options.config_name} --model_path base"
    save("noise_gain", command, rows, noise_level=LEVEL, decisions=len(features))


if __name__ == "__main__":
    main()
