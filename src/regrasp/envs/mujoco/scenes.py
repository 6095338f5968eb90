"""Random rendered scenes with the positions of what instructions name, for grounding pretraining.

MuJoCo is imported inside the worker processes, after their graphics backend is chosen.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np

from regrasp.envs.mujoco.backend import require_backend
from regrasp.hardware import available_cores

_PIECE = 500


@dataclass(frozen=True)
class Scenes:
    """N scenes of one task."""

    instructions: tuple[str, ...]
    images: np.ndarray
    """(N, H, W, 3) uint8."""
    targets: np.ndarray
    """(N, I, S, 2) float32 metres: where the S objects named by each instruction are; NaN past the last one."""


def render_scenes(
    task_id: str, num_scenes: int, seed: int, on_progress: Callable[[int], None] | None = None
) -> Scenes:
    """Render random scenes of a task in parallel; the result depends on the seed and not on the number of cores."""
    counts = [min(_PIECE, num_scenes - start) for start in range(0, num_scenes, _PIECE)]
    environment = {"MUJOCO_GL": require_backend(), "LP_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    images, targets, instructions = [], [], ()
    with ProcessPoolExecutor(
        available_cores(), multiprocessing.get_context("spawn"), _set_environment, (environment,)
    ) as pool:
        pieces = pool.map(_render_piece, [task_id] * len(counts), counts, [seed] * len(counts), range(len(counts)))
        for instructions, piece_images, piece_targets in pieces:
            images.append(piece_images)
            targets.append(piece_targets)
            if on_progress is not None:
                on_progress(len(piece_images))
    return Scenes(instructions, np.concatenate(images), np.concatenate(targets))


def _set_environment(variables: dict[str, str]) -> None:
    os.environ.update(variables)


def _render_piece(task_id: str, count: int, seed: int, piece: int) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    import mujoco

    from regrasp.envs.mujoco.renderer import Renderer
    from regrasp.envs.mujoco.simulator import create_task

    task = create_task(task_id)
    camera = task.cameras[0]
    data = mujoco.MjData(task.model)
    renderer = Renderer(task.model, camera.height, camera.width)
    rng = np.random.default_rng([seed, piece])
    images = np.empty((count, camera.height, camera.width, 3), np.uint8)
    targets = []
    for image in images:
        targets.append(task.scatter(data, rng).targets)
        renderer.render(data, camera.name, image)
    renderer.close()
    return task.instructions, images, np.stack(targets)
