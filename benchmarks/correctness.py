"""The first minibatch's probability ratio, and whether a resumed run equals an uninterrupted one.

    python benchmarks/correctness.py [--model_path quickstart-run/seed_0/base]

Four updates of the quickstart's experiment with 32 environments; the last two again, resumed from the checkpoint of the
second; and all four again, recomputing the backbone's features in every epoch.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch

from regrasp.checkpoint.read import find_checkpoint, read_checkpoint
from regrasp.experiment.load import load_config
from regrasp.stages.train import train
from results_file import save

SIZES = ["env.train.total_num_envs=32", "runner.max_epochs=4", "runner.save_interval=2", "runner.val_check_interval=-1"]


def run(folder: Path, model: str, *overrides: str) -> dict[str, torch.Tensor]:
    """Train in `folder` and return the last weights."""
    loaded = load_config("pick_cube_ppo_groot", [*SIZES, f"actor.model.model_path={model}", *overrides])
    folder.mkdir(exist_ok=True)
    train(loaded, folder)
    return read_checkpoint(find_checkpoint(folder)).model_state


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Over all weights."""
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def metrics(folder: Path) -> list[dict]:
    """Logged metrics without times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]


def main() -> None:
    """Run and compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model_path", default="quickstart-run/seed_0/base")
    model = parser.parse_args().model_path
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        whole = run(root / "whole", model)
        shutil.copytree(root / "whole", root / "parts")
        shutil.rmtree(find_checkpoint(root / "parts"))
        resumed = run(root / "parts", model, f"runner.resume_dir={root / 'parts'}")
        recomputed = run(root / "recomputed", model, "runner.recompute_features=true")
        first_ratio = max(line["train/actor/first_ratio_error"] for line in metrics(root / "whole"))
        same_metrics = metrics(root / "whole") == metrics(root / "parts")
        values = {
            "largest distance of a first minibatch's ratio from 1, 4 updates": first_ratio,
            "largest weight difference, resumed against uninterrupted": largest_difference(whole, resumed),
            "logged metrics equal, resumed against uninterrupted (1: yes)": float(same_metrics),
            "largest weight difference, recomputed against cached features": largest_difference(whole, recomputed),
        }
        rows = [{"check": check, "value": value} for check, value in values.items()]
    save("correctness", "python benchmarks/correctness.py", rows)


if __name__ == "__main__":
    main()
