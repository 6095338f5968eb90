"""SAC and PPO of state policies against stable-baselines3's, at the same number of environment steps.

    python benchmarks/compare_sb3.py [--tasks pendulum inverted_pendulum] [--algorithms sac ppo] [--seeds 0 1 2]
        [--sb3_python PYTHON] [--jobs 1] [--logs FOLDER] [--scale 1.0]

Ours are the shipped experiments of Pendulum, on the task's id; stable-baselines3's have the settings that its RL Zoo
gives for Pendulum, which are what ours were made from. Both are evaluated without exploration, on as many episodes, by
`sb3_run.py` for theirs and by the run for ours. stable-baselines3 may live in an environment of its own
(`--sb3_python`). Finished runs in FOLDER are read. `--scale` shortens all runs, to try the script.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from results_file import save

EPISODES = 100


@dataclass(frozen=True)
class Task:
    """A Gymnasium task."""

    id: str
    max_episode_steps: int
    steps: dict[str, int]
    """Environment steps of a run, by algorithm."""


TASKS = {
    "pendulum": Task("Pendulum-v1", 200, {"sac": 20_000, "ppo": 102_400}),
    "inverted_pendulum": Task("InvertedPendulum-v5", 1000, {"sac": 20_000, "ppo": 102_400}),
}
STEPS_PER_UPDATE = {"sac": 400, "ppo": 4096}


def ours(task: Task, algorithm: str, seed: int, steps: int, folder: Path) -> float:
    """Mean return of the last evaluation of our run."""
    updates = max(1, steps // STEPS_PER_UPDATE[algorithm])
    done = list(folder.glob("*/metrics.jsonl"))
    if not done or len(done[0].read_text().splitlines()) < updates:
        command = [sys.executable, "-m", "regrasp", "train", "--seed", str(seed)]
        command += ["--config_name", f"gymnasium_pendulum_{algorithm}_mlp", "--max_epochs", str(updates)]
        command += [f"env.train.init_params.id={task.id}", f"env.train.max_episode_steps={task.max_episode_steps}"]
        command += [f"env.eval.num_episodes={EPISODES}", f"runner.val_check_interval={updates}"]
        command += ["runner.save_interval=-1", f"runner.logger.log_path={folder}", "runner.logger.logger_backends=[]"]
        with _output(folder) as output:
            subprocess.run([*command, "runner.torch_threads=1"], check=True, stdout=output, stderr=output)
        done = list(folder.glob("*/metrics.jsonl"))
    lines = [json.loads(line) for line in done[-1].read_text().splitlines()]
    assert int(lines[-1]["env/total_steps"]) == updates * STEPS_PER_UPDATE[algorithm]
    return lines[-1]["eval/return"]


def theirs(task: Task, algorithm: str, seed: int, steps: int, folder: Path, python: str) -> float:
    """Mean return of stable-baselines3's policy at the end."""
    result = folder / "result.json"
    if not result.exists():
        steps = max(1, steps // STEPS_PER_UPDATE[algorithm]) * STEPS_PER_UPDATE[algorithm]
        script = Path(__file__).with_name("sb3_run.py")
        command = [python, str(script), task.id, algorithm, str(seed), str(steps), str(EPISODES), str(result)]
        with _output(folder) as output:
            subprocess.run(command, check=True, stdout=output, stderr=output)
    return json.loads(result.read_text())["return"]


def _output(folder: Path) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / "output.txt").open("w")


def row(name: str, algorithm: str, steps: int, own: list[float], other: list[float]) -> dict[str, Any]:
    """Of the table: mean return over the seeds, the lowest and the highest, of both."""
    found: dict[str, Any] = {"task": TASKS[name].id, "algorithm": algorithm.upper(), "env steps": steps}
    for title, returns in (("ours", own), ("stable-baselines3", other)):
        found[title] = round(float(np.mean(returns)), 1)
        found[f"{title}, range"] = f"{min(returns):.1f} to {max(returns):.1f}"
    return found


def main() -> None:
    """Run, and save the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", nargs="+", choices=[*TASKS], default=[*TASKS])
    parser.add_argument("--algorithms", nargs="+", choices=[*STEPS_PER_UPDATE], default=[*STEPS_PER_UPDATE])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sb3_python", default=sys.executable, help="of an environment with stable-baselines3")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--logs", type=Path, default=Path("sb3-runs"))
    parser.add_argument("--scale", type=float, default=1.0)
    args = parser.parse_args()
    rows, returns = [], {}
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = {}
        for name in args.tasks:
            for algorithm in args.algorithms:
                task, steps = TASKS[name], round(TASKS[name].steps[algorithm] * args.scale)
                for seed in args.seeds:
                    folder = args.logs / f"{name}_{algorithm}_{seed}"
                    own = pool.submit(ours, task, algorithm, seed, steps, folder / "ours")
                    other = pool.submit(theirs, task, algorithm, seed, steps, folder / "sb3", args.sb3_python)
                    jobs[name, algorithm, seed] = own, other
        for name in args.tasks:
            for algorithm in args.algorithms:
                pairs = [[job.result() for job in jobs[name, algorithm, seed]] for seed in args.seeds]
                own, other = map(list, zip(*pairs, strict=True))
                steps = max(1, round(TASKS[name].steps[algorithm] * args.scale) // STEPS_PER_UPDATE[algorithm])
                rows.append(row(name, algorithm, steps * STEPS_PER_UPDATE[algorithm], own, other))
                returns[f"{name}_{algorithm}"] = {"ours": own, "stable-baselines3": other}
    command = (
        f"python benchmarks/compare_sb3.py --tasks {' '.join(args.tasks)} --algorithms {' '.join(args.algorithms)}"
    )
    command += f" --seeds {' '.join(map(str, args.seeds))}"
    save("compare_sb3", command if args.scale == 1 else f"{command} --scale {args.scale}", rows, returns=returns)


if __name__ == "__main__":
    main()
