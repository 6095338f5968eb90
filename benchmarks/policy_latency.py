"""Milliseconds of one inference of the tiny GR00T: backbone, and 4 denoising steps.

python benchmarks/policy_latency.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from policies import SENTENCES, STATE_DIM, experiment, random_policy
from regrasp.envs.contract import Observation
from regrasp.seeding import KeyedNoise
from results_file import save

REPEATS = 30


def median_ms(call: Callable[[], object]) -> float:
    """Median over `REPEATS` calls, after three to warm up."""
    for _ in range(3):
        call()
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return sorted(times)[REPEATS // 2] * 1e3


@torch.no_grad()
def main() -> None:
    """Measure batches of 1, 8, 32 and 128."""
    policy = random_policy(experiment()).eval()
    rows = []
    for batch in (1, 8, 32, 128):
        observation = Observation(
            images={"main": torch.randint(0, 256, (batch, 84, 84, 3), dtype=torch.uint8)},
            state={"state": torch.zeros(batch, STATE_DIM)},
            instruction=[SENTENCES[0]] * batch,
        )
        inputs = policy.prepare(observation)
        features = policy.encode(inputs)
        noise = KeyedNoise(0, "eval", [(row, 0, 0) for row in range(batch)])
        rows.append(
            {
                "batch": batch,
                "encode ms": median_ms(lambda inputs=inputs: policy.encode(inputs)),
                "act ms": median_ms(lambda features=features, noise=noise: policy.act(features, noise)),
                "predict ms": median_ms(lambda observation=observation: policy.predict(observation)),
            }
        )
    save("policy_latency", "python benchmarks/policy_latency.py", rows)


if __name__ == "__main__":
    main()
