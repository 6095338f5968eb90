"""Whether two commits compute the same: SHA-256 of weights, metrics, episodes and data of small runs of every stage.

    python benchmarks/same_numbers.py record OUTPUT.json [--regrasp BIN] [--keep FOLDER]
    python benchmarks/same_numbers.py compare BEFORE.json AFTER.json

It knows the command line and the file formats only, so that it can record a commit of any structure: `--regrasp` names
the command of another environment. Numbers agree on one machine; another processor may round differently.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pyarrow.parquet
import torch
from safetensors.torch import load_file

SMALL = [
    "runner.logger.logger_backends=[]",
    "env.train.num_workers=1",
    "env.eval.num_workers=1",
    "env.train.total_num_envs=32",
    "env.eval.total_num_envs=32",
    "env.eval.num_episodes=48",
    "actor.global_batch_size=64",
    "actor.micro_batch_size=64",
]
TINY = [
    "pretrain.architecture.vision_width=24",
    "pretrain.architecture.vision_mlp=48",
    "pretrain.architecture.language_width=24",
    "pretrain.architecture.language_head_dim=8",
    "pretrain.architecture.language_mlp=48",
    "pretrain.architecture.head_width=24",
    "pretrain.architecture.head_layers=2",
    "pretrain.max_median_error_cm=1000",
]
PRETRAIN = ["pretrain.num_scenes=96", "pretrain.steps=6", "pretrain.batch_size=32"]
SFT = ["sft.steps=12", "sft.warmup_steps=2", "sft.batch_size=32", "sft.validation_fraction=0.2", "sft.eval_interval=6"]
RUN = ["runner.val_check_interval=2", "runner.save_interval=2", "runner.keep_checkpoints=null", "runner.force=true"]
TROCAR = [
    "env.train.total_num_envs=2",
    "env.eval.total_num_envs=2",
    "env.eval.num_episodes=2",
    "env.train.max_episode_steps=32",
    "env.train.max_steps_per_rollout_epoch=32",
    "actor.global_batch_size=4",
    "actor.micro_batch_size=4",
    "collect.only_successful=false",
    "sft.validation_fraction=0.5",
]


class Recorder:
    """Runs commands in a folder and keeps the hashes of what they leave.

    Args:
        command: The `regrasp` to run.
        root: Everything is written below it.
    """

    def __init__(self, command: str, root: Path) -> None:
        self._command = command
        self.root = root
        self.hashes: dict[str, str] = {}

    def run(self, *arguments: str) -> None:
        """Run a command; its cache is below the root, so that nothing is taken from earlier runs."""
        print("regrasp", *arguments[:3], "...", flush=True)
        environment = {**os.environ, "XDG_CACHE_HOME": str(self.root / "cache"), "LP_NUM_THREADS": "1"}
        command = [self._command, *arguments]
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(
                f"{' '.join(command)} ended in {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
            )

    def keep(self, name: str, value: Any) -> None:
        """Keep the hash of JSON-like data, an array or a dictionary of tensors."""
        self.hashes[name] = _hash(value, str(self.root))

    def model(self, name: str, folder: Path) -> None:
        """Keep the weights and every JSON file of a model folder."""
        weights: dict[str, torch.Tensor] = {}
        for file in sorted(folder.glob("*.safetensors")):
            weights |= load_file(file)
        self.keep(f"{name}/weights", weights)
        for file in sorted(folder.rglob("*.json")):
            if not file.name.endswith(".index.json"):
                self.keep(f"{name}/{file.relative_to(folder)}", json.loads(file.read_text()))

    def dataset(self, name: str, folder: Path) -> None:
        """Keep the tables and decoded frames of a LeRobotDataset."""
        for file in sorted(folder.rglob("*.parquet")):
            self.keep(f"{name}/{file.relative_to(folder)}", pyarrow.parquet.read_table(file).to_pydict())
        for file in sorted(folder.rglob("*.mp4")):
            with av.open(str(file)) as video:
                frames = np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])
            self.keep(f"{name}/{file.relative_to(folder)}", frames)
        self.keep(f"{name}/stats.json", json.loads((folder / "meta" / "stats.json").read_text()))

    def training(self, name: str, logs: Path) -> Path:
        """Keep metrics and all checkpoints of the only run in `logs`; returns its folder."""
        run = next(logs.glob("*-*"))
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for line in lines:
            kept = {tag: value for tag, value in line.items() if not tag.startswith("time/")}
            self.keep(f"{name}/metrics/{line['step']}", kept)
        for folder in sorted(run.glob("*/checkpoints/global_step_*")):
            weights = torch.load(folder / "actor" / "model_state_dict" / "full_weights.pt", weights_only=True)
            self.keep(f"{name}/{folder.name}/weights", weights)
        return run

    def evaluation(self, name: str, logs: Path) -> None:
        """Keep the outcome and every episode of the only evaluation in `logs`."""
        run = next((logs / "eval").glob("*-*"))
        self.keep(f"{name}/evaluation", json.loads((run / "evaluation.json").read_text()))
        self.keep(f"{name}/episodes", (run / "episodes.jsonl").read_text())


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, the oldest first."""
    return sorted(run.glob("*/checkpoints/global_step_*"), key=lambda folder: int(folder.name.rpartition("_")[2]))


def mlp(recorder: Recorder) -> None:
    """The state policy on pick-cube: demonstrations, imitation, 6 updates."""
    experiment = ["--config_name", "pick_cube_ppo_mlp", *SMALL]
    root = recorder.root / "mlp"
    recorder.run("collect", *experiment, "--num_demos", "6", "--output", f"{root}/demos")
    recorder.run("sft", *experiment, "--data", f"{root}/demos", "--output", f"{root}/base", "sft.steps=30")
    recorder.model("mlp/base", root / "base")
    logs = f"runner.logger.log_path={root}/logs"
    recorder.run("train", *experiment, "--model_path", f"{root}/base", "--max_epochs", "6", logs, *RUN)
    recorder.training("mlp", root / "logs")


def groot(recorder: Recorder) -> None:
    """The tiny GR00T on pick-cube through every stage, resumed in the middle, evaluated and exported."""
    experiment = ["--config_name", "pick_cube_ppo_groot", *SMALL, *TINY, *PRETRAIN]
    root = recorder.root / "groot"
    base = base_model(recorder, "groot", experiment, root, num_demos=6)
    logs = f"runner.logger.log_path={root}/logs"
    train = ["train", *experiment, "--model_path", str(base), "--max_epochs", "4", logs, *RUN]
    recorder.run(*train)
    run = recorder.training("groot", root / "logs")
    resumed = root / "resumed" / run.name
    shutil.copytree(run, resumed)
    shutil.rmtree(checkpoints(resumed)[-1])
    recorder.run(*train, "--resume_dir", str(resumed), f"runner.logger.log_path={root}/resuming")
    recorder.training("groot/resumed", next(p for p in (root / "resuming", root / "resumed") if _has_last(p)))
    last = checkpoints(run)[-1]
    play = ["play", *experiment, "--num_episodes", "48", logs]
    recorder.run(*play, "--model_path", str(base), "--rl_model_path", str(last))
    recorder.evaluation("groot", root / "logs")
    recorder.run("export", "--model_path", str(base), "--rl_model_path", str(last), "--output", f"{root}/out")
    recorder.model("groot/export", root / "out")
    recomputed = [*train[:-1], "runner.recompute_features=true", "actor.model.trainable=all", "algorithm.kl_beta=0.01"]
    recomputed = [text if text != logs else f"runner.logger.log_path={root}/all" for text in recomputed]
    recorder.run(*recomputed, "--max_epochs", "2", "runner.force=true", "algorithm.value_epochs=1")
    recorder.training("groot/all", root / "all")


def _has_last(folder: Path) -> bool:
    return any(folder.glob("*/*/checkpoints/global_step_4"))


def stack(recorder: Recorder) -> None:
    """Stack-cube in short: imitation and two updates with white noise on every denoising step."""
    experiment = ["--config_name", "stack_cube_ppo_groot", *SMALL, *TINY, *PRETRAIN]
    root = recorder.root / "stack"
    base = base_model(recorder, "stack", experiment, root, num_demos=3)
    more = ["actor.model.rl_head_config.joint_logprob=true", f"runner.logger.log_path={root}/logs"]
    recorder.run("train", *experiment, "--model_path", str(base), "--max_epochs", "2", *RUN, *more)
    recorder.training("stack", root / "logs")


def trocar(recorder: Recorder) -> None:
    """The trocar experiment at toy size."""
    experiment = ["--config_name", "trocar_ppo_groot", *SMALL, *TINY, *PRETRAIN, *TROCAR]
    root = recorder.root / "trocar"
    base = base_model(recorder, "trocar", experiment, root, num_demos=2)
    logs = f"runner.logger.log_path={root}/logs"
    recorder.run("train", *experiment, "--model_path", str(base), "--max_epochs", "2", logs, *RUN)
    recorder.training("trocar", root / "logs")


def convert(recorder: Recorder) -> None:
    """A dataset of a recording in the layout of Isaac Lab's recorder."""
    file = recorder.root / "recording.hdf5"
    write_recording(file)
    output = recorder.root / "converted"
    recorder.run("convert", str(file), "--config_name", "isaaclab_stack_cube_ppo_groot", "--output", str(output))
    recorder.dataset("convert", output)


def base_model(recorder: Recorder, name: str, experiment: list[str], root: Path, *, num_demos: int) -> Path:
    """Pretrain, collect and imitate; keeps what each stage leaves."""
    recorder.run("pretrain", *experiment, "--output", f"{root}/backbone")
    recorder.model(f"{name}/backbone", root / "backbone")
    recorder.run("collect", *experiment, "--num_demos", str(num_demos), "--output", f"{root}/demos")
    recorder.dataset(f"{name}/demos", root / "demos")
    backbone = ["--backbone", f"{root}/backbone", "--data", f"{root}/demos"]
    sft = SFT[:3] if name == "trocar" else SFT
    recorder.run("sft", *experiment, *backbone, "--output", f"{root}/base", *sft)
    recorder.model(f"{name}/base", root / "base")
    return root / "base"


def write_recording(file: Path) -> None:
    """Three episodes with the observations that the shipped Isaac Lab experiment names."""
    with h5py.File(file, "w") as recording:
        data = recording.create_group("data")
        sim_args = {"dt": 0.01, "decimation": 5, "render_interval": 5, "num_envs": 1}
        name = "Isaac-Stack-Cube-Franka-IK-Rel-Visuomotor-v0"
        data.attrs["env_args"] = json.dumps({"env_name": name, "type": 2, "sim_args": sim_args})
        for index in range(3):
            rng, length = np.random.default_rng(index), 6 + index
            group = data.create_group(f"demo_{index}")
            group.attrs["num_samples"], group.attrs["success"] = length, True
            widths = {"actions": 7, "obs/eef_pos": 3, "obs/eef_quat": 4, "obs/gripper_pos": 2}
            for path, width in widths.items():
                group[path] = rng.normal(size=(length, width)).astype(np.float32)
            for camera in ("table_cam", "wrist_cam"):
                group[f"obs/{camera}"] = rng.integers(0, 256, (length, 16, 20, 3), np.uint8)


def _hash(value: Any, root: str) -> str:
    """Paths below `root` count as relative ones."""
    digest = hashlib.sha256()
    for piece in _pieces(value):
        digest.update(piece.replace(root.encode(), b"."))
    return digest.hexdigest()


def _pieces(value: Any) -> Iterator[bytes]:
    if isinstance(value, dict) and value and all(isinstance(item, torch.Tensor) for item in value.values()):
        for name in sorted(value):
            tensor = value[name].contiguous()
            yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
            yield tensor.flatten().view(torch.uint8).numpy().tobytes()
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype} {value.shape}".encode()
        yield value.tobytes()
    else:
        yield json.dumps(value, sort_keys=True, default=str).encode()


PARTS: dict[str, Callable[[Recorder], None]] = {part.__name__: part for part in (mlp, groot, stack, trocar, convert)}


def record(args: argparse.Namespace) -> int:
    """Run every part, or those that are named, and write the hashes."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(args.keep or temporary).resolve()
        root.mkdir(parents=True, exist_ok=True)
        recorder = Recorder(args.regrasp, root)
        for name in args.parts or PARTS:
            PARTS[name](recorder)
    args.output.write_text(json.dumps(recorder.hashes, indent=1) + "\n")
    print(f"{len(recorder.hashes)} hashes in {args.output}")
    return 0


def compare(args: argparse.Namespace) -> int:
    """Print what differs; 0 where nothing does. What only the first file has is a difference too."""
    before, after = (json.loads(file.read_text()) for file in (args.before, args.after))
    parts = {name.partition("/")[0] for name in after}
    before = {name: value for name, value in before.items() if name.partition("/")[0] in parts}
    different = [name for name in sorted(before | after) if before.get(name) != after.get(name)]
    for name in different:
        print("differs" if name in before and name in after else "missing" if name in before else "new", name)
    print(f"{len(before | after) - len(different)} of {len(before | after)} equal ({', '.join(sorted(parts))})")
    return int(bool(different))


def main() -> int:
    """Record or compare."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    recording = commands.add_parser("record")
    recording.add_argument("output", type=Path)
    recording.add_argument("--regrasp", default=str(Path(sys.executable).parent / "regrasp"))
    recording.add_argument("--keep", metavar="FOLDER", help="leave what the runs wrote there")
    recording.add_argument("--parts", nargs="*", choices=list(PARTS), help="default: all")
    recording.set_defaults(run=record)
    comparing = commands.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    comparing.set_defaults(run=compare)
    args = parser.parse_args()
    return args.run(args)


if __name__ == "__main__":
    raise SystemExit(main())
