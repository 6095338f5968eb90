"""The trocar task's stage machine, on poses whose stage is known by construction."""

from __future__ import annotations

import numpy as np
import pytest

from regrasp.envs.mujoco.tasks.trocar.scene import BORE, Poses
from regrasp.envs.mujoco.tasks.trocar.stages import advance, dense_reward, dropped, insertion_depth, progress, reached

Y = np.array([0.0, 1.0, 0.0])


def poses(second: list[float], first: list[float] | None = None, tilt: float = 0.0) -> Poses:
    """The trocar along y; the puncture device at `second`, tilted about z by `tilt`."""
    tilted = np.array([-np.sin(tilt), np.cos(tilt), 0.0])
    return Poses(np.array([first or [-1.6, 1.9, 1.1], second]), np.stack([Y, tilted]))


def test_lifting_needs_both_objects_above_15_centimetres():
    assert reached(poses([-1.5, 1.9, 1.00484]))[0]
    assert not reached(poses([-1.5, 1.9, 1.00482]))[0]
    assert not reached(poses([-1.5, 1.9, 1.1], first=[-1.6, 1.9, 1.0]))[0]


@pytest.mark.parametrize(("gap", "expected"), [(0.0149, True), (0.0151, False)])
def test_tips_meet_within_15_millimetres(gap: float, expected: bool):
    """Tips are at -45 mm and +45 mm along the axes: they coincide with centres 90 mm apart."""
    assert reached(poses([-1.6, 1.9 - 0.09 - gap, 1.1]))[1] == expected


@pytest.mark.parametrize(
    ("distance", "tilt", "expected"),
    [(0.049, 0.0, True), (0.051, 0.0, False), (0.03, 0.149, True), (0.03, 0.151, False), (0.03, np.pi - 0.1, True)],
)
def test_the_reference_calls_close_parallel_objects_inserted(distance: float, tilt: float, expected: bool):
    assert reached(poses([-1.6, 1.9 - distance, 1.1], tilt=tilt))[2] == expected


def test_placing_needs_both_in_the_zone():
    inside = [-1.6, 1.65, 0.88]
    assert reached(poses(inside, first=[-1.41, 1.79, 0.899]))[3]
    for outside in (
        [-1.81, 1.65, 0.88],
        [-1.39, 1.65, 0.88],
        [-1.6, 1.49, 0.88],
        [-1.6, 1.81, 0.88],
        [-1.6, 1.65, 0.91],
    ):
        assert not reached(poses(inside, first=outside))[3]
        assert not reached(poses(outside, first=inside))[3]


def test_stages_come_in_order_and_several_may_come_at_once():
    def after(stage: int, *conditions: int) -> int:
        return advance(stage, np.array(conditions, bool))

    assert after(0, 0, 1, 1, 1) == 0
    assert after(0, 1, 0, 1, 1) == 1
    assert after(1, 0, 1, 1, 0) == 3
    assert after(3, 0, 0, 0, 1) == 4
    assert after(2, 0, 0, 0, 0) == 2, "never back"
    assert after(4, 1, 1, 1, 1) == 4


def test_dense_progress_is_the_references_formula():
    near = poses([-1.6, 1.9 - 0.09 - 0.02, 1.1], tilt=0.12)
    tip = np.array([-1.6, 1.9 - 0.045, 1.1]), near.centres[1] + 0.045 * near.axes[1]
    gap = np.linalg.norm(tip[0] - tip[1])
    values = progress(near)
    assert values[0] == 1.0
    assert values[1] == pytest.approx(np.exp(-(gap**2) / 0.0008))
    assert values[2] == 0.0, "tilted by more than 0.10"
    assert progress(poses([-1.6, 1.86, 1.1], tilt=0.09))[2] == pytest.approx(np.exp(-(0.04**2) / 0.005))


def test_dense_reward_locks_what_a_stage_had_when_it_was_completed():
    locked = np.zeros(4)
    met = poses([-1.6, 1.9 - 0.10, 1.1])
    tip = np.exp(-(0.01**2) / 0.0008)
    insert = np.exp(-(0.10**2) / 0.005)
    assert dense_reward(1, 2, met, locked, 0.02) == pytest.approx((tip + insert) * 0.02)
    far = poses([-1.6, 1.0, 1.1])
    assert dense_reward(2, 2, far, locked, 0.02) == pytest.approx(tip * 0.02, abs=1e-9)
    assert locked.tolist() == pytest.approx([0, tip, 0, 0])


def test_true_insertion_is_depth_through_the_opening():
    assert insertion_depth(poses([-1.6, 1.9 - 0.035, 1.1])) == pytest.approx(0.055)
    assert insertion_depth(poses([-1.6, 1.9 - 0.095, 1.1])) == 0.0, "5 mm short"
    assert insertion_depth(poses([-1.6 + BORE * 0.9, 1.9 - 0.035, 1.1])) == pytest.approx(0.055)


def test_a_rod_beside_the_tube_passes_the_reference_and_is_not_truly_inserted():
    beside = poses([-1.6, 1.9 - 0.035, 1.1 + 0.017])
    assert reached(beside)[2]
    assert insertion_depth(beside) == 0.0


def test_a_rod_through_the_wall_is_not_truly_inserted():
    """Its tip is inside, but it crosses the opening's plane outside of the bore."""
    tilt = 0.3
    centre = np.array([-1.6, 1.9, 1.1]) - 0.045 * np.array([-np.sin(tilt), np.cos(tilt), 0.0])
    assert insertion_depth(poses(centre.tolist(), tilt=tilt)) == 0.0
    assert insertion_depth(poses([-1.6, 1.9 + 0.035, 1.1], tilt=np.pi)) == 0.0, "from the other end"


def test_dropping_means_off_the_table():
    assert not dropped(poses([-1.6, 1.9, 0.86]))
    assert dropped(poses([-1.6, 1.9, 0.49]))
