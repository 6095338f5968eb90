"""Random rendered scenes with the positions of what instructions name, for grounding pretraining.

MuJoCo is imported inside the worker processes, after their graphics backend is chosen.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np

from regrasp.device import available_cores
from regrasp.envs.mujoco.backend import require_backend
from regrasp.envs.scenes import Scenes
from regrasp.errors import SimulatorError

_PIECE = 500


def render_scenes(task_id: str, num_scenes: int, seed: int, on_progress: Callable[[int], None] | None = None) -> Scenes:
    """Render random scenes of a task in parallel; the result depends on the seed and not on the number of cores.

    Raises:
        SimulatorError: A rendering process died.
    """
    counts = [min(_PIECE, num_scenes - start) for start in range(0, num_scenes, _PIECE)]
    environment = {"MUJOCO_GL": require_backend(), "LP_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    parts: list[Scenes] = []
    with ProcessPoolExecutor(
        available_cores(), multiprocessing.get_context("spawn"), _prepare_worker, (environment,)
    ) as pool:
        pieces = pool.map(_render_piece, [task_id] * len(counts), counts, [seed] * len(counts), range(len(counts)))
        try:
            for part in pieces:
                parts.append(part)
                if on_progress is not None:
                    on_progress(len(part.images))
        except BrokenProcessPool as error:
            raise SimulatorError(
                f"A process that renders scenes of {task_id} died; was there enough memory?"
            ) from error
    names = ("images", "positions", "pixels", "robot")
    return Scenes(parts[0].instructions, *(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _prepare_worker(variables: dict[str, str]) -> None:
    os.environ.update(variables)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """A pool's worker waits for work for ever when its parent is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _render_piece(task_id: str, count: int, seed: int, piece: int) -> Scenes:
    import mujoco

    from regrasp.envs.mujoco.renderer import Renderer, project
    from regrasp.envs.mujoco.simulator import create_task

    task = create_task(task_id, key="pretrain.tasks")
    camera = task.cameras[0]
    data = mujoco.MjData(task.model)
    renderer = Renderer(task.model, camera.height, camera.width)
    rng = np.random.default_rng([seed, piece])
    images = np.empty((count, camera.height, camera.width, 3), np.uint8)
    positions, pixels, robot = [], [], []
    for image in images:
        scene = task.scatter(data, rng)
        renderer.render(data, camera.name, image)
        positions.append(scene.positions[..., :2])
        pixels.append(project(task.model, data, camera.name, scene.positions))
        robot.append(scene.robot)
    renderer.close()
    return Scenes(task.instructions, images, *(np.stack(rows).astype("f4") for rows in (positions, pixels, robot)))
