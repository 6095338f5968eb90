"""Whole training loops of GR00T N1.5's size on several GPUs of one host: colocated against disaggregated.

    python benchmarks/scaling_loops.py --gpus 2 --json benchmarks/results/scaling_loops_2.json
    python benchmarks/scaling_loops.py --gpus 2 --tiny     the same code with a tiny network on CPU processes

PPO on the trocar task of the embedded simulator with random weights, 16 environments and 32 samples of a minibatch for
each GPU, by `regrasp train`. Disaggregated, half of the GPUs simulate and act, and half train. Times are medians over
the updates after the first, which compiles.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from gpu_training import large_config, large_settings, random_policy
from results_file import revision


def layouts(gpus: int) -> dict[str, tuple[int, list[str]]]:
    """GPUs and settings of every layout."""
    half = gpus // 2
    apart = rf"cluster.component_placement={{env\,rollout:{numbers(0, half)},actor:{numbers(half, gpus)}}}"
    return {
        "one GPU": (1, [r"cluster.component_placement={actor\,env\,rollout:0}"]),
        "colocated": (gpus, [rf"cluster.component_placement={{actor\,env\,rollout:{numbers(0, gpus)}}}"]),
        "disaggregated": (gpus, [apart]),
        "disaggregated, max_staleness 1": (gpus, [apart, "runner.max_staleness=1"]),
    }


def numbers(begin: int, end: int) -> str:
    """Those from `begin` to before `end`, as a placement has them."""
    return str(begin) if end == begin + 1 else f"{begin}-{end - 1}"


def measure(
    name: str, gpus: int, settings: Sequence[str], model: Path, folder: Path, *, tiny: bool, updates: int
) -> dict[str, Any]:
    """One training."""
    own = large_settings(tiny=tiny, updates=updates)
    envs, batch = (2, 32) if tiny else (16, 32)
    own += [f"env.train.total_num_envs={envs * gpus}", f"actor.global_batch_size={batch * gpus}"]
    own += ["actor.fsdp_config.mixed_precision.reduce_dtype=bf16", "runner.save_interval=-1", "runner.force=true"]
    for part in ("env.train.isaaclab", "env.eval.isaaclab"):  # the folder says how it was made
        own += [f"{part}.data_config_class=null", f"{part}.embodiment_tag=null", f"{part}.embodiment_tag_id=0"]
    own += [f"runner.logger.log_path={folder}", "runner.logger.logger_backends=[]", *settings]
    command = [sys.executable, "-m", "regrasp", "train", "--config_name", "trocar_ppo_groot"]
    subprocess.run([*command, "--seed", "0", "--model_path", str(model), *own], check=True)
    file = next(folder.glob("*/metrics.jsonl"))
    made = [row for row in map(json.loads, file.read_text().splitlines()) if "time/step" in row]
    samples = {
        column: [row[f"time/{key}"] for row in made]
        for column, key in (("loop s", "step"), ("rollout s", "generate_rollouts"), ("update s", "actor_training"))
    }
    steps = [now["env/total_steps"] - before["env/total_steps"] for before, now in itertools.pairwise(made)]
    row = {"layout": name, "gpus": gpus, "env steps": statistics.median(steps)}
    row |= {column: statistics.median(values[1:]) for column, values in samples.items()}
    return row | {"env steps/s": row["env steps"] / row["loop s"], "samples": samples}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--updates", type=int, default=5, help="of each training, 3 at least")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="+", help="some of the layouts")
    parser.add_argument("--commit", default=None, help="what is measured, where the folder has no git history")
    parser.add_argument("--tiny", action="store_true", help="a tiny network on CPU processes")
    options = parser.parse_args()
    device = torch.device("cpu" if options.tiny else "cuda")
    rows = []
    with TemporaryDirectory() as temporary:
        model = Path(temporary) / "model"
        random_policy(large_config([], tiny=options.tiny, updates=1), device, tiny=options.tiny).save(model)
        if not options.tiny:
            torch.cuda.empty_cache()
        for name, (gpus, settings) in layouts(options.gpus).items():
            if options.only and name not in options.only:
                continue
            folder = Path(temporary) / name.replace(" ", "_").replace(",", "")
            rows.append(measure(name, gpus, settings, model, folder, tiny=options.tiny, updates=options.updates))
            print(rows[-1], flush=True)
    document = {
        "command": f"python benchmarks/scaling_loops.py --gpus {options.gpus} --json PATH",
        "commit": revision() if options.commit is None else options.commit,
        "device": "CPU" if options.tiny else torch.cuda.get_device_name(0),
        "torch": torch.__version__,
        "rows": rows,
    }
    if options.json is not None:
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
