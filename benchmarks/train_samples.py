"""Samples per second of supervised training and of PPO, with and without the feature cache.

    python benchmarks/train_samples.py

One optimizer step each of the quickstart's policy (random weights) at its batch size: forward, backward, clip, AdamW.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from tensordict import TensorDict

from policies import SENTENCES, STATE_DIM, experiment, random_policy
from regrasp.envs.contract import Observation
from regrasp.models.groot.policy import GrootPolicy
from regrasp.seeding import KeyedNoise
from results_file import save

REPEATS = 7


def samples_per_second(policy: GrootPolicy, part: str, batch: int, loss: Callable[[], torch.Tensor]) -> float:
    """Median over `REPEATS` optimizer steps."""
    policy.requires_grad_(False)
    parameters = [parameter for _, parameter in policy.trainable(part)]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, 1e-6)
    times = []
    for _ in range(REPEATS + 2):
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        times.append(time.perf_counter() - started)
    return batch / sorted(times[2:])[REPEATS // 2]


def main() -> None:
    """Measure the two stages."""
    config = experiment()
    assert config.sft is not None
    policy = random_policy(config)
    rows = []
    for stage, batch in (("SFT", config.sft.batch_size), ("PPO", config.actor.micro_batch_size)):
        inputs = policy.prepare(
            Observation(
                images={"main": torch.randint(0, 256, (batch, 84, 84, 3), dtype=torch.uint8)},
                state={"state": torch.zeros(batch, STATE_DIM)},
                instruction=[SENTENCES[0]] * batch,
            )
        )
        noise = KeyedNoise(0, "data", [(row, 0, 0) for row in range(batch)])
        with torch.no_grad():
            features = policy.encode(inputs)
            trace = policy.act(features, noise).trace
        actions = torch.zeros(batch, policy.config.action_horizon, config.actor.model.action_dim)
        valid = torch.ones(actions.shape[:2], dtype=torch.bool)
        repeats = config.sft.noise_repeats

        def loss_of(
            features: TensorDict, stage=stage, noise=noise, actions=actions, valid=valid, trace=trace, repeats=repeats
        ) -> torch.Tensor:
            if stage == "SFT":
                return policy.sft_loss(features, actions, valid, noise, repeats)
            evaluation = policy.evaluate(features, trace)
            return evaluation.log_probs.mean() + evaluation.values.mean()

        cached = samples_per_second(policy, "head", batch, lambda features=features: loss_of(features))
        rerun = samples_per_second(policy, "head", batch, lambda inputs=inputs: loss_of(policy.encode(inputs)))
        rows.append(
            {
                "stage": stage,
                "batch": batch,
                "samples/s cached": round(cached),
                "samples/s re-run": round(rerun),
                "ratio": cached / rerun,
            }
        )
    save("train_samples", "python benchmarks/train_samples.py", rows)


if __name__ == "__main__":
    main()
