"""Rotations from one representation to another, with the conventions of GR00T's transforms (those of PyTorch3D)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from regrasp.config.types import Rotation
from regrasp.models.normalization import Scaling, Statistics

_AXES = {"r": 0, "p": 1, "y": 2}
_EULER = "euler_angles_"


def rotation_width(kind: Rotation) -> int:
    """Numbers that describe one rotation."""
    widths: Mapping[str, int] = {"quaternion": 4, "rotation_6d": 6}
    return widths.get(kind, 3)


def rotation_bounds(kind: Rotation) -> Statistics:
    """Bounds that hold for every rotation: 1 for quaternions and matrices, pi for angles."""
    limit = 1.0 if kind in ("quaternion", "rotation_6d") else torch.pi
    return Statistics.bounds(torch.full((rotation_width(kind),), limit))


def convert_rotation(values: Tensor, source: Rotation, target: Rotation) -> Tensor:
    """(..., width of source) to (..., width of target).

    Euler angles `euler_angles_abc` are R_a R_b R_c with roll about x, pitch about y, yaw about z; `rotation_6d` is the
    first two rows of the matrix (Zhou et al. 2019); quaternions are (w, x, y, z), given back with w >= 0.
    """
    return values if source == target else _from_matrix(_to_matrix(values.float(), source), target)


class RotationScaling:
    """A rotation turned into another representation, then scaled."""

    def __init__(self, source: Rotation, target: Rotation, scaling: Scaling) -> None:
        self._source: Rotation = source
        self._target: Rotation = target
        self._scaling = scaling
        self.width = rotation_width(source)
        self.normalized_width = scaling.normalized_width

    def normalize(self, values: Tensor) -> Tensor:
        """Physical units (..., width) to policy units."""
        return self._scaling.normalize(convert_rotation(values, self._source, self._target))

    def unnormalize(self, values: Tensor) -> Tensor:
        """Policy units to physical units (..., width)."""
        return convert_rotation(self._scaling.unnormalize(values), self._target, self._source)


def _to_matrix(values: Tensor, kind: Rotation) -> Tensor:
    """Rotation matrices (..., 3, 3)."""
    match kind:
        case "quaternion":
            return _of_quaternion(torch.nn.functional.normalize(values, dim=-1))
        case "axis_angle":
            half = values.norm(dim=-1, keepdim=True) / 2
            # torch.sinc(x) is sin(pi x) / (pi x), so this is sin(half) / (2 half) times the vector.
            vector = values * torch.sinc(half / torch.pi) / 2
            return _of_quaternion(torch.cat([half.cos(), vector], -1))
        case "rotation_6d":
            first = torch.nn.functional.normalize(values[..., :3], dim=-1)
            second = values[..., 3:] - (first * values[..., 3:]).sum(-1, keepdim=True) * first
            second = torch.nn.functional.normalize(second, dim=-1)
            return torch.stack([first, second, torch.linalg.cross(first, second)], -2)
    first, second, third = (_about(axis, values[..., i]) for i, axis in enumerate(_euler_axes(kind)))
    return first @ second @ third


def _from_matrix(matrix: Tensor, kind: Rotation) -> Tensor:
    match kind:
        case "quaternion":
            return _to_quaternion(matrix)
        case "axis_angle":
            quaternion = _to_quaternion(matrix)
            sine = quaternion[..., 1:].norm(dim=-1, keepdim=True)
            half = torch.atan2(sine, quaternion[..., :1])
            return 2 * quaternion[..., 1:] / torch.sinc(half / torch.pi)
        case "rotation_6d":
            return matrix[..., :2, :].flatten(-2)
    a, b, c = _euler_axes(kind)
    sign = 1 if (b - a) % 3 == 1 else -1
    return torch.stack(
        [
            torch.atan2(-sign * matrix[..., b, c], matrix[..., c, c]),
            torch.asin((sign * matrix[..., a, c]).clamp(-1, 1)),
            torch.atan2(-sign * matrix[..., a, b], matrix[..., a, a]),
        ],
        -1,
    )


def _euler_axes(kind: Rotation) -> tuple[int, int, int]:
    a, b, c = (_AXES[letter] for letter in kind.removeprefix(_EULER))
    return a, b, c


def _about(axis: int, angle: Tensor) -> Tensor:
    """Rotation by `angle` (...,) about a coordinate axis."""
    first, second = (axis + 1) % 3, (axis + 2) % 3
    matrix = torch.zeros(*angle.shape, 3, 3, device=angle.device)
    matrix[..., axis, axis] = 1
    matrix[..., first, first] = matrix[..., second, second] = angle.cos()
    matrix[..., second, first] = angle.sin()
    matrix[..., first, second] = -angle.sin()
    return matrix


def _of_quaternion(quaternion: Tensor) -> Tensor:
    """Rotation matrices of unit quaternions: v' = v + 2 w (u x v) + 2 u x (u x v) for the columns of the identity."""
    w, u = quaternion[..., :1, None], quaternion[..., 1:]
    x, y, z = u.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    return torch.eye(3, device=u.device) + 2 * w * cross + 2 * cross @ cross


def _to_quaternion(matrix: Tensor) -> Tensor:
    """Unit quaternions (..., 4) with w >= 0: the best conditioned row of 4 q q^T, which is linear in the matrix."""
    m = matrix
    d0, d1, d2 = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    wx, wy, wz = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    xy, xz, yz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    entries = [1 + d0 + d1 + d2, wx, wy, wz, wx, 1 + d0 - d1 - d2, xy, xz]
    entries += [wy, xy, 1 - d0 + d1 - d2, yz, wz, xz, yz, 1 - d0 - d1 + d2]
    outer = torch.stack(entries, -1).unflatten(-1, (4, 4))
    best = outer.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None].expand(*outer.shape[:-2], 1, 4)
    quaternion = torch.nn.functional.normalize(outer.gather(-2, best).squeeze(-2), dim=-1)
    return torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)
