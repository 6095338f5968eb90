"""Five tasks of Meta-World by one policy: demonstrations, base model, fine-tuning, and both models' success by task.

METAWORLD_PYTHON=<python with Meta-World> python benchmarks/metaworld.py --output outputs/metaworld [key=value ...]

A stage whose result is in the output folder is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from regrasp.logging.intervals import wilson_interval
from regrasp.logging.metrics import METRICS_FILE, read_metrics
from results_file import save

EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "metaworld"
EXPERIMENT = "five_tasks_sac_groot"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/metaworld"))
    parser.add_argument("--machine", help="on which the output folder was made, if not on this one")
    parser.add_argument("overrides", nargs="*", help="of every stage")
    args = parser.parse_args()
    output = args.output.absolute()

    def stage(done: Path, command: str, *more: str) -> None:
        if not done.exists():
            flags = ["--config_name", f"{EXPERIMENT}.yaml", *args.overrides, *more]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
            subprocess.run([sys.executable, "-m", "regrasp", command, *flags], check=True, cwd=EXAMPLE, env=environment)

    stage(output / "backbone", "pretrain", "--output", f"{output}/backbone")
    stage(output / "demos", "collect", "--output", f"{output}/demos")
    stage(
        *(output / "base", "sft", "--data", f"{output}/demos", "--output", f"{output}/base"),
        f"sft.backbone={output}/backbone",
    )
    stage(output / "train", "train", "--model_path", f"{output}/base", f"runner.logger.log_path={output}/train")
    (run,) = (file.parent for file in output.glob(f"train/*/{METRICS_FILE}"))
    model = max(
        run.glob(f"{EXPERIMENT}/checkpoints/*/model"), key=lambda folder: int(folder.parent.name.split("_")[-1])
    )
    for name, folder in (("base", output / "base"), ("tuned", model)):
        log = output / f"play_{name}"
        stage(log, "play", "--model_path", str(folder), "--video", f"runner.logger.log_path={log}")
    base, tuned = (json.loads(next(output.glob(f"play_{name}/**/evaluation.json")).read_text()) for name in NAMES)
    metrics = read_metrics(run / METRICS_FILE)
    save(
        "metaworld",
        shlex.join(["python", "benchmarks/metaworld.py", *args.overrides]),
        [_row("all", base, tuned), *(_row(task, base, tuned) for task in base["per_instruction"])],
        train_env_steps=round(metrics[-1]["env/total_steps"]),
        train_minutes=round(sum(row["time/step"] for row in metrics) / 60, 1),
        evaluations=[[row["step"], row["eval/success_once"]] for row in metrics if "eval/success_once" in row],
        **({} if args.machine is None else {"machine": args.machine}),
    )


NAMES = ("base", "tuned")


def _row(task: str, base: dict[str, Any], tuned: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"task": task}
    for name, summary in zip(NAMES, (base, tuned), strict=True):
        successes, count = _counts(task, summary)
        low, high = wilson_interval(successes, count)
        row |= {f"{name}": f"{successes / count:.1%}", f"{name} 95 %": f"{low:.1%} to {high:.1%}", "episodes": count}
    return row


def _counts(task: str, summary: dict[str, Any]) -> tuple[int, int]:
    if task != "all":
        return summary["per_instruction"][task]
    return round(summary["success"] * summary["episodes"]), summary["episodes"]


if __name__ == "__main__":
    main()
