"""Algorithms on pick-cube from the same base models: success against environment steps, wall time and CPU time.

    python benchmarks/compare_algorithms.py --models base_0 base_1 base_2 [--algorithms ppo dsrl ...] [--steps 150000]
        [--points 8] [--episodes 500] [--jobs 4] [--logs FOLDER] [--name NAME] [--quickstarts] [key=value ...]

Every algorithm is its shipped experiment, with the seed N on the model number N, for as many updates as take about so
many environment steps; `key=value` are further settings of all of them. Those of OpenVLA need base models of their own
(docs/openvla.md) and are compared apart. Runs go to FOLDER/<algorithm>_<N>; one that is
finished is read, one that was interrupted begins anew. Seconds and CPU seconds are those of all processes of a run
since its start, evaluations included; run no more `--jobs` at a time than there are cores. Linux only.

`--quickstarts` adds the residual as benchmarks/results/quickstart_seeds.json has it: the same recipe and seeds, 500
episodes an evaluation, no times on the way.

Writes benchmarks/results/<NAME>.json and docs/images/<NAME>.png, and prints the table as Markdown.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from results_file import RESULTS, save

PICTURES = Path(__file__).parents[1] / "docs" / "images"
POLL = 0.5
"""Seconds between two looks at a run."""
THRESHOLD = 0.8
"""Success whose cost the table gives."""
AXES = {"env_steps": "environment steps", "seconds": "seconds", "cpu_seconds": "CPU seconds"}


@dataclass(frozen=True)
class Algorithm:
    """An algorithm of the comparison."""

    title: str
    config: str
    steps_per_update: int
    """About how many environment steps an update takes on the way from 40 to 90 % success."""
    color: str
    anneals: bool = False
    """Whether its noise is annealed over the run."""


ALGORITHMS = {
    "ppo": Algorithm("PPO", "pick_cube_ppo_groot", 4700, "#1d4ed8", anneals=True),
    "grpo": Algorithm("GRPO", "pick_cube_grpo_groot", 7400, "#c2410c", anneals=True),
    "reinpp": Algorithm("REINFORCE++", "pick_cube_reinpp_groot", 4700, "#15803d", anneals=True),
    "residual": Algorithm("residual", "pick_cube_sac_groot", 2200, "#7c3aed"),
    "dsrl": Algorithm("DSRL", "pick_cube_dsrl_groot", 2200, "#be123c"),
    "sac_flow": Algorithm("SAC-Flow", "pick_cube_sac_flow_groot", 2200, "#0e7490"),
    "selection": Algorithm("selection", "pick_cube_selection_groot", 2200, "#a16207"),
    "openvla_ppo": Algorithm("OpenVLA, PPO", "pick_cube_ppo_openvla", 4200, "#1d4ed8"),
    "openvla_grpo": Algorithm("OpenVLA, GRPO", "pick_cube_grpo_openvla", 4200, "#c2410c"),
    "openvla_reinpp": Algorithm("OpenVLA, REINFORCE++", "pick_cube_reinpp_openvla", 4200, "#15803d"),
}
OF_GROOT = [name for name in ALGORITHMS if not name.startswith("openvla")]
Point = dict[str, float]


def tree_cpu_seconds(pid: int) -> float:
    """CPU seconds of a process and its descendants, those that ended and were waited for included."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = [
            child for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()
        ]
    except OSError:  # it has ended meanwhile
        return 0.0
    own = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return own + sum(tree_cpu_seconds(int(child)) for child in children)


def evaluations(run: Path) -> list[tuple[int, float]]:
    """Environment steps and success of a run's evaluations so far; a line that is being written does not count."""
    file = next(run.glob("*/metrics.jsonl"), None)
    lines = [] if file is None else [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    rows = map(json.loads, lines)
    return [(int(row["env/total_steps"]), row["eval/success_once"]) for row in rows if "eval/success_once" in row]


def evaluate_base(model: Path, seed: int, args: argparse.Namespace) -> float:
    """Success of a base model."""
    kept, config = args.logs / f"base_{seed}", ALGORITHMS[args.algorithms[0]].config
    if next(kept.glob("eval/*/evaluation.json"), None) is None:
        shutil.rmtree(kept, ignore_errors=True)
        command = [sys.executable, "-m", "regrasp", "play", "--config_name", config]
        command += ["--seed", str(seed), "--model_path", str(model), "--num_episodes", str(args.episodes)]
        subprocess.run([*command, f"runner.logger.log_path={kept}", "runner.torch_threads=1"], check=True)
    return json.loads(next(kept.glob("eval/*/evaluation.json")).read_text())["success"]


def train(name: str, model: Path, seed: int, args: argparse.Namespace) -> list[Point]:
    """Run an algorithm, or read the run that is there, and give its evaluations."""
    algorithm, folder = ALGORITHMS[name], args.logs / f"{name}_{seed}"
    kept = folder / "points.json"
    if kept.exists():
        return json.loads(kept.read_text())
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    interval = max(1, round(args.steps / algorithm.steps_per_update / args.points))
    updates = interval * args.points
    command = [sys.executable, "-m", "regrasp", "train", "--config_name", algorithm.config]
    command += ["--seed", str(seed), "--model_path", str(model), "--max_epochs", str(updates)]
    command += [f"runner.val_check_interval={interval}", f"env.eval.num_episodes={args.episodes}"]
    command += ["runner.save_interval=-1", f"runner.logger.log_path={folder}", "runner.logger.logger_backends=[]"]
    command += ["runner.torch_threads=1"]
    if algorithm.anneals:
        command += [f"actor.model.rl_head_config.noise_params=[1.0,0.4,{max(1, updates - 2)}]"]
    points: list[Point] = []
    with (folder / "output.txt").open("w") as output:
        started = time.monotonic()
        process = subprocess.Popen([*command, *args.overrides], stdout=output, stderr=subprocess.STDOUT)
        while True:
            ended, cpu = process.poll() is not None, tree_cpu_seconds(process.pid)
            for steps, success in evaluations(folder)[len(points) :]:
                cpu = max(cpu, points[-1]["cpu_seconds"] if points else 0.0)
                points.append(
                    {
                        "env_steps": steps,
                        "success": success,
                        "seconds": round(time.monotonic() - started, 1),
                        "cpu_seconds": round(cpu, 1),
                    }
                )
            if ended:
                break
            time.sleep(POLL)
    if process.returncode:
        raise SystemExit(f"{name}, seed {seed}: the run failed, see {folder / 'output.txt'}")
    kept.write_text(json.dumps(points))
    return points


def quickstarts() -> list[list[Point]]:
    """The residual's curves of the saved quickstarts, by seed."""
    saved = json.loads((RESULTS / "quickstart_seeds.json").read_text())
    return [
        [
            {"env_steps": 0, "success": row["base success"]},
            *({"env_steps": steps, "success": success} for steps, success in saved["curves"][str(row["seed"])]),
        ]
        for row in saved["rows"]
    ]


def needed(points: Sequence[Point], axis: str) -> float | None:
    """Where the line between evaluations first reaches `THRESHOLD`; None where it does not."""
    if points[0]["success"] >= THRESHOLD:
        return points[0][axis]
    for before, after in itertools.pairwise(points):
        if after["success"] >= THRESHOLD:
            share = (THRESHOLD - before["success"]) / (after["success"] - before["success"])
            return before[axis] + share * (after[axis] - before[axis])
    return None


def summary(title: str, curves: Sequence[Sequence[Point]]) -> dict[str, Any]:
    """An algorithm's row of the table: means over the seeds, and the cost of `THRESHOLD` where all reach it."""
    ends = [points[-1] for points in curves]
    found: dict[str, Any] = {"algorithm": title, "seeds": len(curves)}
    found["base"] = round(float(np.mean([points[0]["success"] for points in curves])), 3)
    success = [round(end["success"], 3) for end in ends]
    found |= {"success": round(float(np.mean(success)), 3), "lowest": min(success), "highest": max(success)}
    found["env steps"] = round(float(np.mean([end["env_steps"] for end in ends])))
    for name, axis in (("minutes", "seconds"), ("CPU min", "cpu_seconds")):
        found[name] = round(float(np.mean([end[axis] for end in ends])) / 60, 1) if axis in ends[0] else "-"
    costs = [needed(points, "env_steps") for points in curves]
    reached = [cost for cost in costs if cost is not None]
    found[f"steps to {THRESHOLD:.0%}"] = round(float(np.mean(reached))) if len(reached) == len(costs) else "-"
    return found


def band(curves: Sequence[Sequence[Point]], axis: str) -> tuple[np.ndarray, np.ndarray]:
    """A grid as far as the shortest run goes, and (seeds, grid) success between evaluations."""
    grid = np.linspace(0, min(points[-1][axis] for points in curves), 50)
    return grid, np.stack([np.interp(grid, [p[axis] for p in c], [p["success"] for p in c]) for c in curves])


def draw(runs: dict[str, list[list[Point]]], file: Path, episodes: int) -> None:
    """Mean success over the seeds, with the range of them, against each axis that is known."""
    known = [axis for axis in AXES if any(axis in curves[0][-1] for curves in runs.values())]
    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, axis in zip(figure.subplots(1, len(known), sharey=True), known, strict=True):
        for name, curves in runs.items():
            if axis not in curves[0][-1]:
                continue
            grid, success = band(curves, axis)
            color = ALGORITHMS[name].color
            axes.plot(grid, success.mean(0), color=color, label=ALGORITHMS[name].title)
            axes.fill_between(grid, success.min(0), success.max(0), color=color, alpha=0.12)
        axes.set_xlabel(AXES[axis])
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_ylim(0, 1)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel(f"success of {episodes} episodes")
    figure.axes[0].legend(frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([str(cell) for cell in row.values()] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Run, save, draw."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=Path, nargs="+", required=True, help="base model folders, one for each seed")
    parser.add_argument("--seeds", type=int, nargs="+", help="one for each model; default: 0, 1, ...")
    parser.add_argument("--algorithms", nargs="+", choices=[*ALGORITHMS], default=OF_GROOT)
    parser.add_argument("--steps", type=int, default=150_000, help="environment steps of a run, about")
    parser.add_argument("--points", type=int, default=8, help="evaluations of a run")
    parser.add_argument("--episodes", type=int, default=500, help="of an evaluation")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--logs", type=Path, default=Path("compare-runs"))
    parser.add_argument("--name", default="compare_algorithms")
    parser.add_argument("--quickstarts", action="store_true", help="add the residual of the saved quickstarts")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    seeds = args.seeds or list(range(len(args.models)))
    if len(seeds) != len(args.models):
        parser.error("--seeds needs one number for each of --models")
    pairs = list(zip(args.models, seeds, strict=True))
    with ThreadPoolExecutor(args.jobs) as pool:
        waiting = [pool.submit(evaluate_base, *pair, args) for pair in pairs]
        bases = [job.result() for job in waiting]
        jobs = {name: [pool.submit(train, name, *pair, args) for pair in pairs] for name in args.algorithms}
        runs = {
            name: [
                [{"env_steps": 0, "success": base, "seconds": 0.0, "cpu_seconds": 0.0}, *job.result()]
                for base, job in zip(bases, own, strict=True)
            ]
            for name, own in jobs.items()
        }
    if args.quickstarts:
        runs["residual"] = quickstarts()
    rows = [summary(ALGORITHMS[name].title, curves) for name, curves in runs.items()]
    points = {name: dict(zip(map(str, seeds), curves, strict=False)) for name, curves in runs.items()}
    command = f"python benchmarks/compare_algorithms.py --models <{len(seeds)} base models> --seeds"
    command += f" {' '.join(map(str, seeds))} --algorithms {' '.join(args.algorithms)} --steps {args.steps}"
    command += f" --points {args.points} --episodes {args.episodes} --jobs {args.jobs}"
    command += " --quickstarts" if args.quickstarts else ""
    save(args.name, " ".join([command, *args.overrides]), rows, points=points)
    draw(runs, PICTURES / f"{args.name}.png", args.episodes)
    print(markdown(rows))


if __name__ == "__main__":
    main()
