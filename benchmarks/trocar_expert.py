"""The trocar task's scripted expert over fixed seeds: how often each stage is reached, and at which step.

    python benchmarks/trocar_expert.py            # as shipped: 200 episodes
    python benchmarks/trocar_expert.py --noise    # normal noise on every joint's target: 100 episodes each
    python benchmarks/trocar_expert.py --physics  # timestep and squeeze of the grip: 40 episodes each

Needs the extra `trocar`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from statistics import median
from typing import Any

import numpy as np

from regrasp.device import available_cores
from regrasp.envs.mujoco.simulator import MujocoSimulator
from regrasp.envs.mujoco.tasks.trocar.options import TrocarOptions
from regrasp.envs.mujoco.tasks.trocar.task import SQUEEZE, TIMESTEP, AssembleTrocar
from regrasp.logging.intervals import wilson_interval
from results_file import save

FIRST_SEED = 3000
LIMIT = 256
STAGES = ("lifted", "tips_met", "inserted", "placed")


@dataclass(frozen=True)
class Case:
    """What is varied."""

    noise: float = 0.0
    """Standard deviation, in radians, of what is added to every joint's target at every step."""
    timestep: float = TIMESTEP
    squeeze: float = SQUEEZE


@cache
def simulator_of(timestep: float, squeeze: float) -> MujocoSimulator:
    """One environment without cameras, kept by its process."""
    return MujocoSimulator(AssembleTrocar(TrocarOptions(), timestep=timestep, squeeze=squeeze), 1, LIMIT)


def run(case: Case, seed: int) -> dict[str, int | None]:
    """One episode: the step of each stage and of the true insertion, None where it was not reached."""
    simulator = simulator_of(case.timestep, case.squeeze)
    noise = np.random.default_rng((seed, 1))
    steps: dict[str, int | None] = dict.fromkeys((*STAGES, "truly_inserted"))
    simulator.reset([0], [seed])
    action = np.zeros((1, simulator.describe().action_dim))
    for step in range(1, LIMIT + 1):
        simulator.expert([0], action)
        outcome = simulator.advance(action + case.noise * noise.standard_normal(action.shape), np.ones(1, bool))
        for name in steps:
            if outcome.info[name][0] and steps[name] is None:
                steps[name] = step
        if outcome.terminated[0] or outcome.truncated[0]:
            break
    return steps


def measure(case: Case, episodes: int, pool: ProcessPoolExecutor) -> dict[str, Any]:
    """One row: shares in percent, the interval of the last stage's, and the median step of each stage."""
    seeds = range(FIRST_SEED, FIRST_SEED + episodes)
    found = list(pool.map(run, [case] * episodes, seeds, chunksize=5))

    def column(name: str, of: Callable[[list[int]], float]) -> float:
        return of([step for result in found if (step := result[name]) is not None])

    placed = round(column("placed", len))
    low, high = wilson_interval(placed, episodes)
    row = asdict(case) | {"episodes": episodes}
    row |= {f"{name} %": 100 * column(name, len) / episodes for name in (*STAGES, "truly_inserted")}
    row |= {"low %": 100 * low, "high %": 100 * high}
    return row | {f"{name} at": column(name, lambda steps: median(steps) if steps else float("nan")) for name in STAGES}


def main() -> None:
    """Measure the cases asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--noise", action="store_true")
    chosen.add_argument("--physics", action="store_true")
    args = parser.parse_args()
    name, flag, cases, episodes = "trocar_expert", "", [Case()], 200
    if args.noise:
        name, flag, episodes = "trocar_expert_noise", " --noise", 100
        cases = [Case(noise=noise) for noise in (0.01, 0.02, 0.03)]
    elif args.physics:
        name, flag, episodes = "trocar_expert_physics", " --physics", 40
        cases = [Case(timestep=t, squeeze=s) for t in (0.0025, 0.005) for s in (0.75, 0.85, 0.95)]
    with ProcessPoolExecutor(available_cores()) as pool:
        rows = [measure(case, episodes, pool) for case in cases]
    save(name, f"python benchmarks/trocar_expert.py{flag}", rows)


if __name__ == "__main__":
    main()
