"""The quickstarts' models without their residual, distilled.

    python benchmarks/distill_seeds.py [--seeds 0 1 2] [--runs FOLDER]

Needs what benchmarks/quickstart_seeds.py left in FOLDER (default: quickstart-run). Models go to
FOLDER/seed_<S>/distilled; one that is there is not made again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from results_file import save

ONE_THREAD = "runner.torch_threads=1"


def regrasp(*arguments: str) -> None:
    """Run a command."""
    subprocess.run([sys.executable, "-m", "regrasp", *arguments, ONE_THREAD], check=True)


def main() -> None:
    """Distill and evaluate the seeds one after the other."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("quickstart-run"))
    args = parser.parse_args()
    rows = []
    for seed in args.seeds:
        folder = args.runs / f"seed_{seed}"
        summary = json.loads((folder / "summary.json").read_text())
        distilled, logs = folder / "distilled", folder / "distilled_logs"
        checkpoints = folder / "train" / "pick_cube_sac_groot" / "checkpoints"
        newest = max(checkpoints.glob("global_step_*"), key=lambda path: int(path.name.rpartition("_")[2]))
        if not distilled.exists():
            regrasp("distill", "--seed", str(seed), "--model_path", str(newest / "model"), "--output", str(distilled))
        regrasp("play", "--seed", str(seed), "--model_path", str(distilled), f"runner.logger.log_path={logs}")
        result = json.loads(max(logs.rglob("evaluation.json")).read_text())
        row = {"seed": seed}
        for name, evaluated in (("with its residual", summary["finetuned"]), ("distilled", result)):
            low, high = evaluated["ci95"]
            row |= {name: evaluated["success"], f"{name}, 95 % interval": f"{low:.3f}-{high:.3f}"}
        rows.append(row | {"episodes": result["episodes"]})
    save("distill_seeds", f"python benchmarks/distill_seeds.py --seeds {' '.join(map(str, args.seeds))}", rows)


if __name__ == "__main__":
    main()
