"""Rendered scenes: what an instruction names is where the scene says, in the world and in the picture."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import numpy as np
import psutil
import pytest
from vec_envs import PICK, STACK, all_gone

from regrasp.envs.mujoco import scenes
from regrasp.envs.mujoco.scenes import render_scenes
from regrasp.envs.scenes import Scenes
from regrasp.errors import SimulatorError

COLORS = ("red", "green", "blue")
HALF_CUBE = 0.02
SIZE = 84


@pytest.fixture(scope="module")
def picking() -> Scenes:
    return render_scenes(PICK, 200, seed=0)


@pytest.fixture(scope="module")
def stacking() -> Scenes:
    return render_scenes(STACK, 60, seed=1)


def table_point(pixels: np.ndarray) -> np.ndarray:
    """Where the front camera's rays through `pixels` (..., 2) meet the height of a lying cube's centre (..., 2).

    A pinhole at (0.36, 0, 0.36) with a vertical field of view of 40 degrees, its picture's axes along y and
    (-0.66, 0, 0.75).
    """
    position = np.array([0.36, 0.0, 0.36])
    right, up = np.array([0.0, 1.0, 0.0]), np.array([-0.66, 0.0, 0.75]) / np.hypot(0.66, 0.75)
    ahead = np.cross(up, right)
    tangent = np.tan(np.radians(20))
    ray = ahead + tangent * ((2 * pixels[..., :1] - 1) * right + (1 - 2 * pixels[..., 1:]) * up)
    return (position + ray * ((HALF_CUBE - position[2]) / ray[..., 2:]))[..., :2]


def blob(image: np.ndarray, color: int) -> np.ndarray:
    """Pixel centres (M, 2), as fractions, where `color` dominates."""
    others = np.delete(image.astype(int), color, 2).max(2)
    rows, columns = np.nonzero(image[..., color].astype(int) - others > 50)
    return np.stack([columns + 0.5, rows + 0.5], 1) / SIZE


def test_shapes_and_types(picking: Scenes, stacking: Scenes):
    assert picking.images.shape == (200, SIZE, SIZE, 3)
    assert picking.images.dtype == np.uint8
    assert picking.positions.shape == picking.pixels.shape == (200, 3, 2, 2)
    assert stacking.positions.shape == stacking.pixels.shape == (60, 6, 2, 2)
    assert picking.positions.dtype == picking.pixels.dtype == np.float32
    assert picking.instructions == tuple(f"pick up the {color} cube" for color in COLORS)


def test_slots_follow_the_words(picking: Scenes, stacking: Scenes):
    assert np.isfinite(picking.positions[:, :, 0]).all()
    assert np.isnan(picking.positions[:, :, 1]).all()
    assert np.isnan(picking.pixels[:, :, 1]).all()
    for values in (stacking.positions, stacking.pixels):
        places = {}
        for i, text in enumerate(stacking.instructions):
            for slot, color in enumerate(word for word in text.split() if word in COLORS):
                np.testing.assert_array_equal(values[:, i, slot], places.setdefault(color, values[:, i, slot]))
        assert len(places) == 3
        assert np.isfinite(list(places.values())).all()


def test_positions_agree_with_the_pinhole_model(picking: Scenes):
    """All but the held (15 % of scenes) and the stacked cubes (5 %) lie on the table."""
    off = np.linalg.norm(table_point(picking.pixels[:, :, 0]) - picking.positions[:, :, 0], axis=-1)
    lying = off < 1e-4
    assert 0.90 < lying.mean() < 0.97
    assert (lying.sum(1) >= 2).all(), "at most one cube of a scene is in the air"


def test_the_named_colour_is_in_the_picture_where_the_scene_says(picking: Scenes):
    """Only the gripper can hide a cube; wherever most of one is seen, its middle is at the pixel given."""
    checked = hidden = 0
    for image, pixels in zip(picking.images, picking.pixels[:, :, 0], strict=True):
        for color, pixel in enumerate(pixels):
            seen = blob(image, color)
            if len(seen) < 60:
                hidden += 1
                continue
            checked += 1
            assert np.abs(np.median(seen, 0) - pixel).max() < 6 / SIZE
    assert checked > 0.75 * 600
    assert hidden < 0.25 * 600


def test_scenes_vary_and_also_show_held_and_covered_cubes(picking: Scenes):
    assert len({image.tobytes() for image in picking.images}) == 200
    area = np.array([[len(blob(image, color)) for color in range(3)] for image in picking.images])
    assert (area == 0).any(), "sometimes hidden by the gripper"
    assert (area > 2 * np.median(area)).any(), "sometimes held near the camera"


def test_the_result_depends_on_the_seed_and_not_on_cores(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scenes, "_PIECE", 4)
    runs, progress = [], []
    for cores in (1, 3):
        monkeypatch.setattr(scenes, "available_cores", lambda cores=cores: cores)
        runs.append(render_scenes(PICK, 10, 5, progress.append))
    for name in ("images", "positions", "pixels"):
        np.testing.assert_array_equal(getattr(runs[0], name), getattr(runs[1], name))
    assert progress == [4, 4, 2] * 2
    other = render_scenes(PICK, 4, 6)
    assert (other.positions[:, :, 0] != runs[0].positions[:4, :, 0]).all()


def test_a_renderer_that_dies_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scenes, "_PIECE", 20)
    monkeypatch.setattr(scenes, "available_cores", lambda: 1)

    def kill_renderers(_count: int) -> None:
        for child in psutil.Process().children():
            if "spawn_main" in " ".join(child.cmdline()):
                child.kill()

    with pytest.raises(SimulatorError, match=f"renders scenes of {PICK} died"):
        render_scenes(PICK, 2000, 0, kill_renderers)


ORPHANAGE = """
from regrasp.envs.mujoco.scenes import render_scenes

if __name__ == "__main__":
    render_scenes("Regrasp-Pick-Cube-v0", 1_000_000, 0, lambda count: print(count, flush=True))
"""


def test_renderers_do_not_outlive_their_parent(tmp_path):
    script = tmp_path / "render.py"
    script.write_text(ORPHANAGE)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        assert parent.stdout.readline() == "500\n"
        children = [child.pid for child in psutil.Process(parent.pid).children(recursive=True)]
        assert children
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    assert all_gone(children)
