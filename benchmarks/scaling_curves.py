"""The same training in several placements on the GPUs of one host: do they learn the same?

    python benchmarks/scaling_curves.py --gpus 2 --model base --json PATH [--updates 16] [KEY=VALUE ...]

PPO of the tiny GR00T on pick-cube from one base model and seed: on one GPU, on all of them, with half of them for
rollouts and half for updates, and with the environments in processes of their own. All run at the same time, so that
seconds mean little. One actor gives the numbers of one GPU whatever process it is in; several round their sums in
another order. Without GPUs, a number is a process on the CPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from results_file import revision
from scaling_loops import numbers

COLUMNS = ("total_loss", "grad_norm")
"""Of the first update, which is taken on the same decisions everywhere."""


def placements(gpus: int) -> dict[str, dict[str, str]]:
    """`cluster.component_placement` by the layout's name."""
    half, whole = gpus // 2, numbers(0, gpus)
    return {
        "one": {"actor,env,rollout": "0"},
        "colocated": {"actor,env,rollout": whole},
        "hybrid": {"actor,rollout": whole, "env": whole},
        "disaggregated": {"env": numbers(0, half), "rollout": numbers(0, half), "actor": numbers(half, gpus)},
    }


def start(name: str, placement: dict[str, str], options: argparse.Namespace, folder: Path) -> subprocess.Popen[bytes]:
    """One training, in a process of its own."""
    roles = ",".join(f"{key}:{value}".replace(",", "\\,") for key, value in placement.items())
    command = [sys.executable, "-m", "regrasp", "train", "--config_name", "pick_cube_ppo_groot"]
    command += ["--seed", "0", "--model_path", str(options.model), "--max_epochs", str(options.updates)]
    command += [f"runner.val_check_interval={max(1, options.updates // 4)}"]
    command += [f"env.eval.num_episodes={options.episodes}", "runner.save_interval=-1"]
    command += ["runner.logger.logger_backends=[]", f"runner.logger.log_path={folder / name}"]
    command += [f"cluster.component_placement={{{roles}}}", *options.overrides]
    with (folder / f"{name}.txt").open("w") as output:
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)


def result(folder: Path) -> dict[str, Any]:
    """Of a training that has ended."""
    file = next(folder.glob("*/metrics.jsonl"))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    first = next(row for row in rows if "time/step" in row)
    return {
        "evaluations": [
            [int(row["env/total_steps"]), row["eval/success_once"]] for row in rows if "eval/success_once" in row
        ],
        "first_update": {name: first[f"train/actor/{name}"] for name in COLUMNS},
    }


def main() -> None:
    """Run all placements, print and write what they learned."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--model", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--updates", type=int, default=16)
    parser.add_argument("--episodes", type=int, default=300)
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        layouts = placements(options.gpus)
        running = {name: start(name, placement, options, folder) for name, placement in layouts.items()}
        for name, process in running.items():
            if process.wait():
                for other in running.values():
                    other.terminate()
                raise SystemExit((folder / f"{name}.txt").read_text())
            found[name] = result(folder / name)
            print(name, json.dumps(found[name]), flush=True)
    document = {
        "command": f"python benchmarks/scaling_curves.py --gpus {options.gpus} --model <base> --json PATH",
        "commit": revision(),
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU",
        "placements": layouts,
        "runs": found,
    }
    if options.json is not None:
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
