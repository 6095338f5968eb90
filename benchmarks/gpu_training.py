"""Training on one GPU from end to end: where the time goes, how busy the GPU is, and what it holds.

    python benchmarks/gpu_training.py --json benchmarks/results/gpu_training.json [--parts large quickstart]
        [--commit REVISION]
    python benchmarks/gpu_training.py --tiny     the same code with a tiny network, in a minute on a CPU

`large`: PPO of a policy of GR00T N1.5's size on the trocar task of the embedded simulator, 16 environments with three
cameras at 224 x 224, bfloat16, compiled, with random weights: it learns nothing, and costs what a trained one costs.
One rollout and one update of each layout are profiled. `quickstart`: every stage of the quickstart, with an evaluation
after every 8 updates.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from groot_gpu import NUM_VIEWS, SEQUENCE_LENGTH, TINY_ARCHITECTURE, random_weights, release
from regrasp.engine.local import LocalEngine
from regrasp.engine.placement import Resources, plan
from regrasp.envs.registry import create_env
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.load import load_config
from regrasp.learner.compilation import num_compilations
from regrasp.models.groot.config import GrootConfig
from regrasp.models.groot.policy import GrootPolicy
from regrasp.models.groot.processing.processor import GrootProcessor
from results_file import revision

STATE_DIM = 28
PROFILED = 2
"""Update whose rollout and training are profiled; the ones before it compile."""
LAYOUTS = {
    "one after the other": (),
    "two groups of environments": ("rollout.pipeline_stage_num=2",),
}


def large_settings(*, tiny: bool, updates: int) -> list[str]:
    """What makes the trocar experiment one of the model's published size, or of a tiny one."""
    own = ["env.train.total_num_envs=16", "runner.val_check_interval=-1", f"runner.max_epochs={updates}"]
    own += ["actor.micro_batch_size=32", "actor.global_batch_size=32", "algorithm.target_kl=null"]
    own += ["env.train.isaaclab.gr00t_mapping=null", "env.eval.isaaclab.gr00t_mapping=null"]  # names of a new model
    own += ["actor.model.rl_head_config.noise_color=0.0"]  # whose constants do not outlive the meta device
    own += ["actor.optim.lr=1e-12"]  # random weights that move would only end the run early
    if tiny:
        own += ["env.train.total_num_envs=2", "env.train.max_steps_per_rollout_epoch=32", "algorithm.update_epoch=1"]
        return [*own, "actor.model.num_action_chunks=4"]
    return [*own, "actor.model.precision=bf16", "actor.model.compile=true"]


def large_config(overrides: Sequence[str], *, tiny: bool, updates: int) -> ExperimentConfig:
    """The trocar experiment with `large_settings`."""
    return load_config("trocar_ppo_groot", [*large_settings(tiny=tiny, updates=updates), *overrides]).config


def random_policy(config: ExperimentConfig, device: torch.device, *, tiny: bool) -> GrootPolicy:
    """A policy of the experiment, with random weights."""
    architecture = TINY_ARCHITECTURE | {"max_state_dim": 64, "max_action_dim": 32}
    groot = GrootConfig.tiny(SimpleNamespace(**architecture)) if tiny else GrootConfig()
    processor = GrootProcessor.fresh(
        groot,
        [str(config.env.train.mapping.task_description)],
        num_views=NUM_VIEWS,
        state_dim=STATE_DIM,
        action_dim=config.actor.model.action_dim,
        text_length=8 if tiny else SEQUENCE_LENGTH - NUM_VIEWS * groot.eagle_cfg.vision_config.num_tokens,
        text_first=False,
    )
    with torch.device("meta"):
        policy = GrootPolicy(groot, processor, config.actor.model)
    return random_weights(policy, device)


@contextlib.contextmanager
def started(config: ExperimentConfig, policy: GrootPolicy, device: torch.device, folder: Path) -> Iterator[LocalEngine]:
    """The engine that a training would have."""
    placed = plan(config, Resources.of_this_machine(1))
    with contextlib.ExitStack() as stack:
        stages = [
            stack.enter_context(
                contextlib.closing(
                    create_env(share.of(config.env.train), "train", config.actor.model.num_action_chunks, 0)
                )
            )
            for share in placed.env_shares
        ]
        yield LocalEngine(config, policy, stages, 0, device, folder)


def busy_seconds(intervals: Iterable[tuple[float, float]]) -> float:
    """Seconds covered by intervals in microseconds that may overlap."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total / 1e6


@dataclasses.dataclass
class Timed:
    """One call: its wall time, and how long the GPU was busy where it was profiled."""

    seconds: float
    busy: float | None = None


def timed(call: Callable[[], Any], device: torch.device, *, profiled: bool) -> Timed:
    """Run a call to its end on the device."""

    def run() -> float:
        begun = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    if not profiled:
        return Timed(run())
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        seconds = run()
    kernels = [event.time_range for event in profiler.events() if event.device_type == DeviceType.CUDA]
    return Timed(seconds, busy_seconds((kernel.start, kernel.end) for kernel in kernels))


def measure_layout(name: str, overrides: Sequence[str], device: torch.device, *, tiny: bool, updates: int) -> dict:
    """Rollouts and updates of one layout."""
    release(device)
    config = large_config(overrides, tiny=tiny, updates=updates)
    policy = random_policy(config, device, tiny=tiny)
    rollouts, trainings, decisions, memory, compilations = [], [], [], [], []
    begun = time.perf_counter()
    with TemporaryDirectory() as folder, started(config, policy, device, Path(folder)) as engine:
        start_up = time.perf_counter() - begun
        for update in range(updates):
            profiled = update == PROFILED and device.type == "cuda"
            collect = lambda update=update: engine.collect(update, lambda: False)  # noqa: E731
            train = lambda update=update: engine.update(update, lambda: False)  # noqa: E731
            rollouts.append(timed(collect, device, profiled=profiled))
            assert engine.decisions is not None
            decisions.append(len(engine.decisions))
            stored = sum(tensor.nbytes for tensor in engine.decisions.table.values() if tensor.is_cuda)
            trainings.append(timed(train, device, profiled=profiled))
            memory.append((torch.cuda.memory_allocated() - stored) / 1e9 if device.type == "cuda" else 0.0)
            compilations.append(num_compilations())
            print(f"{name}, update {update}: {decisions[-1]} decisions, {rollouts[-1]}, {trainings[-1]}", flush=True)
    steady = [update for update in range(1, updates) if update != PROFILED]
    rollout, training = (statistics.median(part[update].seconds for update in steady) for part in (rollouts, trainings))
    row: dict[str, Any] = {
        "layout": name,
        "decisions": statistics.median(decisions),
        "rollout s": rollout,
        "update s": training,
        "decisions/s": statistics.median(decisions) / (rollout + training),
        "first update s": rollouts[0].seconds + trainings[0].seconds,
        "start-up s": start_up,
        "compiled after the first update": compilations[-1] - compilations[0],
        "GB after the first update": memory[0],
        "GB at the end": memory[-1],
    }
    if device.type == "cuda":
        profiled = (rollouts[PROFILED], trainings[PROFILED])
        row |= {
            f"busy {part}": one.busy / one.seconds for part, one in zip(("rollout", "update"), profiled, strict=True)
        }
        row["busy loop"] = sum(one.busy for one in profiled) / (rollout + training)
        row["peak GB"] = torch.cuda.max_memory_reserved() / 1e9
    row["samples"] = {
        "rollout s": [one.seconds for one in rollouts],
        "update s": [one.seconds for one in trainings],
        "decisions": decisions,
        "GB without stored decisions": memory,
        "compilations": compilations,
    }
    return row


def quickstart(folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Every stage, and when training first reached 90 %."""
    command = [sys.executable, "-m", "regrasp", "quickstart", "--seed", "0", "--output", str(folder)]
    subprocess.run([*command, "runner.val_check_interval=8", *overrides], check=True)
    summary = json.loads((folder / "summary.json").read_text())
    rows = [json.loads(line) for line in (folder / "train" / "metrics.jsonl").read_text().splitlines()]
    seconds, to_90 = 0.0, None
    for row in rows:
        seconds += row.get("time/step", 0.0) + row.get("time/eval", 0.0)
        if to_90 is None and row.get("eval/success_once", 0.0) >= 0.9:
            to_90 = {"seconds of training": seconds, "env steps": int(row["env/total_steps"])}
    return {
        "stage seconds": summary["stage_seconds"],
        "stage CPU seconds": summary["stage_cpu_seconds"],
        "base": summary["base"]["success"],
        "finetuned": summary["finetuned"]["success"],
        "finetuned 95 % interval": summary["finetuned"]["ci95"],
        "first evaluation of 90 %": to_90,
        "training seconds": {
            name: sum(row.get(f"time/{name}", 0.0) for row in rows)
            for name in ("generate_rollouts", "actor_training", "eval")
        },
        "evaluations": [
            [int(row["env/total_steps"]), row["eval/success_once"]] for row in rows if "eval/success_once" in row
        ],
    }


def check(rows: Sequence[dict[str, Any]]) -> None:
    """Nothing grows, and nothing is compiled after the first update."""
    for row in rows:
        assert row["compiled after the first update"] == 0, row
        assert row["GB at the end"] < 1.02 * row["GB after the first update"] + 0.1, row


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write, check."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    parser.add_argument("--parts", nargs="+", choices=("large", "quickstart"), default=["large", "quickstart"])
    parser.add_argument("--layouts", nargs="+", choices=list(LAYOUTS), default=list(LAYOUTS))
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--runs", type=Path, default=Path("quickstart-run/gpu"), help="folder of the quickstart")
    parser.add_argument("--commit", default=None, help="what is measured, where the folder has no git history")
    parser.add_argument("--tiny", action="store_true", help="a tiny network on the CPU; the numbers mean nothing")
    options = parser.parse_args(arguments)
    device = torch.device("cpu" if options.tiny else "cuda")
    content: dict[str, Any] = {
        "command": "python benchmarks/gpu_training.py --json benchmarks/results/gpu_training.json",
        "commit": revision() if options.commit is None else options.commit,
        "device": "cpu" if options.tiny else torch.cuda.get_device_name(),
        "torch": torch.__version__,
    }
    if "large" in options.parts:
        content["large"] = [
            measure_layout(name, LAYOUTS[name], device, tiny=options.tiny, updates=options.updates)
            for name in options.layouts
        ]
        for row in content["large"]:
            print({key: value for key, value in row.items() if key != "samples"}, flush=True)
    if "quickstart" in options.parts:
        small = ["runner.max_epochs=2", "env.eval.num_episodes=8", "collect.num_demos=2", "sft.steps=2"]
        small += ["env.train.total_num_envs=4", "env.eval.total_num_envs=4", "algorithm.replay_buffer.min_decisions=8"]
        content["quickstart"] = quickstart(options.runs, small if options.tiny else [])
        print(json.dumps(content["quickstart"], indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    if "large" in options.parts:
        check(content["large"])


if __name__ == "__main__":
    main()
