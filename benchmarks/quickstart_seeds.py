"""The quickstart over three seeds.

    python benchmarks/quickstart_seeds.py [key=value ...] [--seeds 0 1 2] [--runs FOLDER]

Runs go to FOLDER/seed_<S> (default: quickstart-run); one that is finished is read, one that was interrupted continues.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from results_file import save


def main() -> None:
    """Run the seeds one after the other."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("quickstart-run"))
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    seeds = args.seeds
    rows, stages, curves = [], {}, {}
    for seed in seeds:
        folder = args.runs / f"seed_{seed}"
        if not (folder / "summary.json").exists():
            command = [sys.executable, "-m", "regrasp", "quickstart", "--seed", str(seed)]
            subprocess.run([*command, "--output", str(folder), *args.overrides], check=True)
        summary = json.loads((folder / "summary.json").read_text())
        updates = [json.loads(line) for line in (folder / "train" / "metrics.jsonl").read_text().splitlines()]
        stages[seed] = summary["stage_cpu_seconds"]
        curves[seed] = [
            [int(row["env/total_steps"]), row["eval/success_once"]] for row in updates if "eval/success_once" in row
        ]
        rows.append(
            {
                "seed": seed,
                **{
                    f"{name} {field}": value
                    for name in ("base", "finetuned")
                    for field, value in (
                        ("success", summary[name]["success"]),
                        ("95 % interval", "{:.3f}-{:.3f}".format(*summary[name]["ci95"])),
                    )
                },
                "episodes": summary["finetuned"]["episodes"],
                "env steps": int(updates[-1]["env/total_steps"]),
                "CPU minutes": summary["total_cpu_seconds"] / 60,
            }
        )
    mean = sum(row["finetuned success"] for row in rows) / len(rows)
    print(f"mean fine-tuned success over {len(rows)} seeds: {mean:.1%}")
    command = " ".join(["python benchmarks/quickstart_seeds.py", *args.overrides, "--seeds", *map(str, seeds)])
    save("quickstart_seeds", command, rows, mean_finetuned_success=mean, stage_cpu_seconds=stages, curves=curves)


if __name__ == "__main__":
    main()
