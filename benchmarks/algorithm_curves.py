"""Learning curves of the algorithms on pick-cube, from one base model, over 160,000 to 180,000 environment steps.

    python benchmarks/algorithm_curves.py [--model_path quickstart-run/seed_0/base] [--logs FOLDER]

Each is its shipped experiment with seed 0, shortened to so many updates; evaluations have 200 episodes each. With
`--logs`, runs that are there already are read instead of made again. Draws `docs/images/algorithm_curves.png`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from regrasp.logging.intervals import wilson_interval
from results_file import save

EPISODES = 200
UPDATES = {"ppo": (38, 6), "grpo": (22, 4), "reinpp": (38, 6)}
"""Updates of a run, and updates between two evaluations."""
NAMES = {"ppo": "PPO", "grpo": "GRPO", "reinpp": "REINFORCE++"}
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "algorithm_curves.png"


def regrasp(*arguments: str) -> None:
    """Run a command."""
    subprocess.run([sys.executable, "-m", "regrasp.cli.main", *arguments], check=True)


def evaluate(model: str, logs: Path) -> None:
    """The base model's success, the first point of every curve."""
    episodes = ["--num_episodes", str(EPISODES), f"runner.logger.log_path={logs}"]
    regrasp("play", "--config_name", "pick_cube_ppo_groot", "--seed", "0", "--model_path", model, *episodes)


def train(name: str, model: str, logs: Path) -> None:
    """Run an experiment; the noise is annealed over it."""
    updates, interval = UPDATES[name]
    command = ["train", "--config_name", f"pick_cube_{name}_groot", "--seed", "0"]
    command += ["--model_path", model, "--max_epochs", str(updates)]
    command += [f"actor.model.rl_head_config.noise_params=[1.0,0.4,{updates - 2}]"]
    command += [f"runner.val_check_interval={interval}", f"env.eval.num_episodes={EPISODES}"]
    command += ["runner.save_interval=-1", f"runner.logger.log_path={logs}", "runner.logger.logger_backends=[]"]
    regrasp(*command)


def curve(name: str, logs: Path, base: float) -> list[dict[str, Any]]:
    """The base model's success and the evaluations of the only run in `logs`."""
    run = next(logs.glob("*-*"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    points = [(0, base)]
    points += [(int(row["env/total_steps"]), row["eval/success_once"]) for row in lines if "eval/success_once" in row]
    rows = []
    for steps, success in points:
        low, high = (round(bound, 3) for bound in wilson_interval(round(success * EPISODES), EPISODES))
        rows.append({"algorithm": NAMES[name], "env steps": steps, "success": success, "low": low, "high": high})
    return rows


def draw(rows: list[dict[str, Any]]) -> None:
    """Success of evaluations over environment steps, with intervals."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for color, name in zip(("#1d4ed8", "#c2410c", "#15803d"), NAMES.values(), strict=True):
        own = [row for row in rows if row["algorithm"] == name]
        steps = [row["env steps"] for row in own]
        axes.plot(steps, [row["success"] for row in own], "o-", color=color, label=name)
        axes.fill_between(steps, [row["low"] for row in own], [row["high"] for row in own], color=color, alpha=0.12)
    axes.set_xlabel("environment steps")
    axes.set_ylabel(f"success of {EPISODES} episodes")
    axes.set_ylim(0, 1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=120)


def main() -> None:
    """Run, save the table, draw."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model_path", default="quickstart-run/seed_0/base")
    parser.add_argument("--logs", type=Path, help="folder of the runs, one folder `logs_<name>` each")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = args.logs or Path(temporary)
        if not (root / "logs_base").is_dir():
            evaluate(args.model_path, root / "logs_base")
        outcome = next((root / "logs_base" / "eval").glob("*-*")) / "evaluation.json"
        base, rows = json.loads(outcome.read_text())["success"], []
        for name in UPDATES:
            logs = root / f"logs_{name}"
            if not logs.is_dir():
                train(name, args.model_path, logs)
            rows += curve(name, logs, base)
    save("algorithm_curves", "python benchmarks/algorithm_curves.py", rows)
    draw(rows)


if __name__ == "__main__":
    main()
