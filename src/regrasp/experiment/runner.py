"""Block `runner`: what a run does and where it writes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from regrasp.config.types import (
    BLOCK,
    Expect,
    FolderName,
    Interval,
    Name,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Seed,
)

Backend = Literal["tensorboard", "wandb", "swanlab"]
_BACKENDS = "a list of 'tensorboard', 'wandb' and 'swanlab', one of them, or null"


def _listed(value: Any) -> Any:
    return [] if value is None else [value] if isinstance(value, str) else value


@dataclass(frozen=True, config=BLOCK)
class LoggerConfig:
    """Where a run writes and which services receive its metrics."""

    log_path: Name | None = None
    """Folder of all runs; null: `logs/regrasp` in the working directory."""
    project_name: Name = "regrasp"
    """Project under which W&B and SwanLab list the run, by the name of its log folder."""
    experiment_name: FolderName = "experiment"
    """Folder of the run's checkpoints inside its log folder, and the group of the run in W&B."""
    logger_backends: Annotated[
        tuple[Backend, ...], Field(strict=False), BeforeValidator(_listed), Expect(_BACKENDS)
    ] = ("tensorboard",)
    """Metrics services, a list or one name; null: none. `metrics.jsonl` is always written."""


@dataclass(frozen=True, config=BLOCK)
class RunnerConfig:
    """Length of a run, its checkpoints and its evaluations."""

    task_type: Literal["embodied", "embodied_eval"] = "embodied"
    """`embodied` trains, `embodied_eval` only evaluates."""
    logger: LoggerConfig = LoggerConfig()
    """Where metrics and files go."""
    max_epochs: PositiveInt = 1000
    """Number of updates; each collects a rollout and trains on it."""
    max_steps: Annotated[int, Field(ge=-1)] = -1
    """Further limit on the number of updates; -1: none."""
    only_eval: bool = False
    """Evaluate the policy once instead of training it."""
    val_check_interval: Interval = -1
    """Updates between two evaluations; -1 or 0: never."""
    val_before_train: bool = False
    """Evaluate before the first update too, where `val_check_interval` is set: the curve then begins with the base
    model."""
    save_interval: Interval = 10
    """Updates between two checkpoints; -1 or 0: only the last update is saved."""
    keep_checkpoints: PositiveInt | None = None
    """Newest checkpoints that stay on disk; null: all."""
    export_model: Literal["always", "last"] = "always"
    """Which checkpoints carry a self-contained model folder."""
    resume_dir: Name | None = None
    """Checkpoint, or run folder, from which training continues."""
    ckpt_path: Name | None = None
    """Weights of a checkpoint, ours or RLinf's, that an evaluation lays over the model; null: none."""
    seed: Seed | None = None
    """Seed of every random stream of the run; null: `actor.seed`."""
    force: bool = False
    """Continue even where a check on the run's own data (not on this file) would stop it."""
    recompute_features: bool = False
    """Run the frozen backbone again in every epoch instead of caching its features."""
    feature_storage: Literal["device", "host"] = "device"
    """Where a rollout's features or images are kept: on the policy's device, or in pinned memory of the host."""
    torch_threads: PositiveInt | None = None
    """CPU threads of torch; null: torch decides."""
    max_staleness: Annotated[int, Field(ge=0, le=1)] = 0
    """Updates by which the policy that acts may be older than the one that learns; 0: every rollout waits for it.
    With 1 the next rollout is made during an update, in one process by a thread."""
    process_timeout_s: PositiveFloat = 900.0
    """Seconds without a decision or a minibatch, beyond the deadlines of simulators, after which the processes of a run
    of several count as hung; they are then started again."""
    max_restarts: NonNegativeInt = 3
    """How often what a process died or hung in is begun anew, without an update in between, before the run ends."""

    @property
    def evaluates(self) -> bool:
        """Whether the run only evaluates."""
        return self.only_eval or self.task_type == "embodied_eval"
