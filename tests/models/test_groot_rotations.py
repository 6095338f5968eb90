from __future__ import annotations

from itertools import product
from typing import cast, get_args

import numpy as np
import pytest
import torch

from regrasp.config.types import Rotation
from regrasp.models.groot.processing.rotations import RotationScaling, convert_rotation, rotation_bounds, rotation_width
from regrasp.models.normalization import Normalizer

KINDS: tuple[Rotation, ...] = get_args(Rotation)


def about(axis: str, angle: float) -> np.ndarray:
    """Rotation about x, y or z, written out."""
    c, s = np.cos(angle), np.sin(angle)
    rows = {
        "x": [[1, 0, 0], [0, c, -s], [0, s, c]],
        "y": [[c, 0, s], [0, 1, 0], [-s, 0, c]],
        "z": [[c, -s, 0], [s, c, 0], [0, 0, 1]],
    }
    return np.array(rows[axis])


def samples(count: int = 40) -> list[tuple[np.ndarray, float]]:
    """Axes and angles below pi, where every representation is unique."""
    generator = np.random.default_rng(0)
    axes = generator.normal(size=(count, 3))
    return list(
        zip(axes / np.linalg.norm(axes, axis=1, keepdims=True), generator.uniform(0.01, 3.1, count), strict=True)
    )


def described(kind: Rotation) -> torch.Tensor:
    """Every sample in one representation, by Rodrigues' formula and the definitions."""
    rows = []
    for axis, angle in samples():
        k = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
        matrix = np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k
        rows.append(
            {
                "axis_angle": axis * angle,
                "quaternion": np.concatenate([[np.cos(angle / 2)], np.sin(angle / 2) * axis]),
                "rotation_6d": matrix[:2].reshape(-1),
            }[kind]
        )
    return torch.from_numpy(np.array(rows)).float()


@pytest.mark.parametrize(("source", "target"), [*product(("axis_angle", "quaternion", "rotation_6d"), repeat=2)])
def test_representations_agree(source, target):
    torch.testing.assert_close(
        convert_rotation(described(source), source, target), described(target), atol=2e-4, rtol=0
    )


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("euler")])
def test_euler_angles_are_rotations_about_the_axes_in_their_order(kind):
    angles = (0.7, -0.4, 2.1)
    axes = [{"r": "x", "p": "y", "y": "z"}[letter] for letter in kind.removeprefix("euler_angles_")]
    matrix = about(axes[0], angles[0]) @ about(axes[1], angles[1]) @ about(axes[2], angles[2])
    rows = convert_rotation(torch.tensor([angles]), kind, "rotation_6d")
    torch.testing.assert_close(rows[0], torch.from_numpy(matrix[:2].reshape(-1)).float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(kind):
    values = convert_rotation(described("quaternion"), "quaternion", kind)
    assert values.shape[-1] == rotation_width(kind)
    for other in KINDS:
        back = convert_rotation(convert_rotation(values, kind, other), other, kind)
        rows = (convert_rotation(rotation, kind, "rotation_6d") for rotation in (values, back))
        torch.testing.assert_close(*rows, atol=2e-4, rtol=0)


def test_no_rotation_is_well_defined():
    for kind in KINDS:
        nothing = convert_rotation(torch.tensor([1.0, 0.0, 0.0, 0.0]), "quaternion", kind)
        assert convert_rotation(nothing, kind, "quaternion").tolist() == pytest.approx([1.0, 0.0, 0.0, 0.0])


def test_a_converted_rotation_is_scaled_by_the_bounds_of_its_representation():
    angles = cast("Rotation", "euler_angles_rpy")
    wide = RotationScaling(angles, "axis_angle", Normalizer(rotation_bounds("axis_angle"), "min_max"))
    values = torch.tensor([[0.0, 0.0, torch.pi / 2]])
    torch.testing.assert_close(wide.normalize(values), torch.tensor([[0.0, 0.0, 0.5]]), atol=1e-6, rtol=0)
    torch.testing.assert_close(wide.unnormalize(wide.normalize(values)), values, atol=1e-5, rtol=0)
    assert (wide.width, wide.normalized_width) == (3, 3)
