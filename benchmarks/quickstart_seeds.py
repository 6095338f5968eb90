"""The quickstart over three seeds.

    python benchmarks/quickstart_seeds.py [--seeds 0 1 2]

Runs go to quickstart-run/seed_<S> and continue where they were if the benchmark is interrupted.
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
    seeds = parser.parse_args().seeds
    rows, stages = [], {}
    for seed in seeds:
        subprocess.run([sys.executable, "-m", "regrasp.cli.main", "quickstart", "--seed", str(seed)], check=True)
        folder = Path("quickstart-run") / f"seed_{seed}"
        summary = json.loads((folder / "summary.json").read_text())
        updates = (folder / "train" / "metrics.jsonl").read_text().splitlines()
        stages[seed] = summary["stage_seconds"]
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
                "env steps": int(json.loads(updates[-1])["env/total_steps"]),
                "minutes": summary["total_seconds"] / 60,
                "CPU minutes": summary["total_cpu_seconds"] / 60,
            }
        )
    mean = sum(row["finetuned success"] for row in rows) / len(rows)
    print(f"mean fine-tuned success over {len(rows)} seeds: {mean:.1%}")
    command = f"python benchmarks/quickstart_seeds.py --seeds {' '.join(map(str, seeds))}"
    save("quickstart_seeds", command, rows, mean_finetuned_success=mean, stage_seconds=stages)


if __name__ == "__main__":
    main()
