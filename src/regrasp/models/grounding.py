"""Grounding pretraining, whatever the model: where is what the words name?

A readout of the model's features gives the positions of the named objects, and points at the patches that show them. It
is thrown away afterwards.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from regrasp.envs.scenes import Scenes
from regrasp.folders import atomic_folder
from regrasp.logging.progress import progress
from regrasp.models.contract import Policy
from regrasp.models.pointing import pointing_target
from regrasp.models.pretraining import GROUNDING_FILE, PretrainConfig
from regrasp.models.weights import write_json
from regrasp.seeding import torch_generator

_EVALUATION_BATCH = 500
_SCALE = 0.1
"""Targets are regressed in units of 10 cm."""


class Locate(Protocol):
    """What a model says of a batch."""

    def __call__(self, images: Tensor, input_ids: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Positions (B, S, 2), scores (B, S, grid * grid) of the image's patches, and the robot's state (B, D).

        Positions and state are in units of 10 cm; the state is None for a model that is told it.

        Args:
            images: (B, 1, H, W, 3) uint8.
            input_ids: (B, L).
        """
        ...


@dataclass(frozen=True)
class Lessons:
    """What a model is grounded on, and how."""

    scenes: Sequence[Scenes]
    """Of every task."""
    num_validation: int
    """Scenes that are held out."""
    learning_rate: Callable[[int], float]
    """Of each optimizer step."""
    device: torch.device
    """Where it happens."""

    @property
    def instructions(self) -> list[str]:
        """Of all tasks."""
        return [text for part in self.scenes for text in part.instructions]

    @property
    def num_slots(self) -> int:
        """Objects that an instruction names at most, S."""
        return self.scenes[0].positions.shape[2]

    @property
    def robot_width(self) -> int:
        """Values that a robot's sensors would say at most, D."""
        return max(part.robot.shape[1] for part in self.scenes)


@dataclass(frozen=True)
class _Examples:
    """Scenes of all tasks, with the token ids of every instruction."""

    images: Tensor
    """(N, 1, H, W, 3) uint8."""
    positions: Tensor
    """(N, I, S, 2) in units of `_SCALE`, NaN past the objects that the instruction names."""
    pixels: Tensor
    """(N, I, S, 2) image coordinates of the same objects."""
    robot: Tensor
    """(N, D) in units of `_SCALE`, NaN past the values of the scene's own robot."""
    input_ids: Tensor
    """(I, L)."""
    allowed: Tensor
    """(N, I) bool: instructions of the scene's own task."""


@dataclass(frozen=True)
class Grounding:
    """How one model is grounded."""

    policy: Policy
    parameters: Sequence[nn.Parameter]
    """What is trained, the readout's among them."""
    images: Tensor
    """(N, 1, H, W, 3) uint8, of all scenes, as `locate` takes them."""
    input_ids: Tensor
    """(I, L), of `Lessons.instructions`."""
    locate: Locate
    grid: int
    """Patches along one side of an image."""
    pointing_weight: float
    """Of the pointing loss beside that of positions."""
    save: Callable[[Path], None]
    """Writes the policy's folder."""


def ground(grounding: Grounding, lessons: Lessons, config: PretrainConfig, output: Path) -> float:
    """Train a policy and write the folder `output`, in float16.

    Returns:
        Median distance over held-out scenes, every instruction of each, in centimetres.

    Raises:
        TrainingHaltedError: The error is above `config.max_median_error_cm`; nothing is written.
    """
    examples = _examples(grounding, lessons)
    order = torch.randperm(len(examples.images), generator=torch_generator(config.seed, "data", 0))
    _train(grounding, examples, order[lessons.num_validation :], config, lessons.learning_rate)
    grounding.policy.half().float()  # as it is stored; the error is that of what others load
    error = _median_error(grounding, examples, order[: lessons.num_validation])
    config.check_error(error)
    with atomic_folder(output, overwrite=True, checksums=True) as draft:
        grounding.policy.cpu().half()
        grounding.save(draft)
        write_json(draft / GROUNDING_FILE, {"median_error_cm": error})
    return error


def _examples(grounding: Grounding, lessons: Lessons) -> _Examples:
    """Join the tasks' scenes; a scene's instructions are its own task's."""
    starts = np.cumsum([0, *(len(part.instructions) for part in lessons.scenes)])

    def join(name: str) -> Tensor:
        padded = [
            np.pad(getattr(part, name), ((0, 0), (start, starts[-1] - end), (0, 0), (0, 0)), constant_values=np.nan)
            for part, (start, end) in zip(lessons.scenes, itertools.pairwise(starts), strict=True)
        ]
        return torch.from_numpy(np.concatenate(padded))

    robots = [
        np.pad(part.robot, ((0, 0), (0, lessons.robot_width - part.robot.shape[1])), constant_values=np.nan)
        for part in lessons.scenes
    ]
    positions, device = join("positions"), lessons.device
    return _Examples(
        images=grounding.images.to(device),
        positions=(positions / _SCALE).to(device),
        pixels=join("pixels").to(device),
        robot=(torch.from_numpy(np.concatenate(robots)) / _SCALE).to(device),
        input_ids=grounding.input_ids.to(device),
        allowed=~positions.isnan().flatten(2).all(-1),
    )


def _train(
    grounding: Grounding,
    examples: _Examples,
    train_rows: Tensor,
    config: PretrainConfig,
    learning_rate: Callable[[int], float],
) -> None:
    optimizer = torch.optim.AdamW(grounding.parameters, config.lr, weight_decay=1e-4, betas=(0.9, 0.95))
    generator = torch_generator(config.seed, "data", 1)
    grounding.policy.train()
    with progress("Pretraining backbone", config.steps) as bar:
        for step in range(config.steps):
            optimizer.param_groups[0]["lr"] = learning_rate(step)
            rows = train_rows[torch.randint(len(train_rows), (config.batch_size,), generator=generator)]
            instructions = torch.multinomial(examples.allowed[rows].float(), 1, generator=generator).squeeze(1)
            predicted, target, others = _predict(grounding, examples, rows, instructions)
            loss = _distance(predicted, target) + others
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(grounding.parameters, 1.0)
            optimizer.step()
            error = (predicted - target).detach().norm(dim=1).median() * _SCALE * 100
            bar.advance(error=f"{error:.2f} cm")
    grounding.policy.eval()


def _predict(
    grounding: Grounding, examples: _Examples, rows: Tensor, instructions: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Predicted and true positions of all named objects of a batch, (M, 2) in units of `_SCALE`, and the other losses.

    These are the cross-entropy between where the readout points and where the object is, and the robot's own state.
    """
    predicted, scores, robot = grounding.locate(examples.images[rows], examples.input_ids[instructions])
    target = examples.positions[rows, instructions]
    named = ~target.isnan().any(-1)
    wanted = pointing_target(examples.pixels[rows, instructions][named], grounding.grid)
    loss = grounding.pointing_weight * nn.functional.cross_entropy(scores[named], wanted)
    if robot is not None and robot.shape[1]:
        state = examples.robot[rows]
        known = ~state.isnan()
        loss = loss + _distance(robot[known], state[known])
    return predicted[named], target[named], loss


def _distance(predicted: Tensor, target: Tensor) -> Tensor:
    return nn.functional.smooth_l1_loss(predicted, target, beta=0.3)


@torch.no_grad()
def _median_error(grounding: Grounding, examples: _Examples, rows: Tensor) -> float:
    pairs = examples.allowed[rows].nonzero()
    distances = []
    for part in pairs.split(_EVALUATION_BATCH):
        predicted, target, _ = _predict(grounding, examples, rows[part[:, 0]], part[:, 1])
        distances.append((predicted - target).norm(dim=1))
    return float(torch.cat(distances).median()) * _SCALE * 100
