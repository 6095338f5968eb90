"""In which order the values of a rotation stand: simulators have two conventions, and a policy learns one of them.

Imports no numerical library.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

from regrasp.errors import UserError

if TYPE_CHECKING:
    from regrasp.envs.mapping_config import MappingConfig
    from regrasp.envs.selection import StateSource

QuaternionOrder = Literal["wxyz", "xyzw"]
"""The real part first, as in Isaac Lab 2 and MuJoCo, or last, as in Isaac Lab 3."""
QUATERNION_ORDERS: tuple[QuaternionOrder, ...] = get_args(QuaternionOrder)
_QUATERNION, _POSE = 4, 7


def quaternion_keys(states: Sequence[StateSource]) -> list[str]:
    """Those parts of a state that are rotations by their name and width: `eef_quat`, or a pose with its position."""

    def is_one(state: StateSource) -> bool:
        width = state.stop - state.start
        return (width == _QUATERNION and "quat" in state.key) or (width == _POSE and "pose" in state.key)

    return [state.key for state in states if is_one(state)]


def agreed_order(mapping: MappingConfig, told: QuaternionOrder | None, location: str) -> QuaternionOrder | None:
    """The order of a state's quaternions, as the mapping at `location` or what offers the state says; None: neither.

    Raises:
        UserError: They say different things.
    """
    if mapping.quaternions is not None and told not in (None, mapping.quaternions):
        raise UserError(
            "What offers the state writes quaternions in another order than the mapping says",
            key=f"{location}.quaternions",
            value=mapping.quaternions,
            expected=f"{told}, or null",
            fix="correct it; a policy of the other order needs the version of the simulator that it was trained with",
        )
    return mapping.quaternions or told


def check_same_order(
    states: Sequence[StateSource],
    found: QuaternionOrder | None,
    trained: QuaternionOrder | None,
    *,
    location: str,
    made: str,
) -> None:
    """Check that a state has its quaternions in the order that `made` was made with, as far as both are known.

    Args:
        states: What the state is made of.
        found: Its order.
        trained: The other.
        location: Where the mapping stands, for errors.
        made: What has the other order, for errors.

    Raises:
        UserError: The orders differ.
    """
    keys = quaternion_keys(states)
    if keys and None not in (found, trained) and found != trained:
        raise UserError(
            f"Quaternions in another order than {made}: {', '.join(keys)}",
            key=f"{location}.states",
            value=found,
            expected=f"{trained}",
            fix="use the version of the simulator that the demonstrations are of (Isaac Lab 2 gives wxyz, 3 xyzw), or"
            " record or convert them again with this one and train on those",
        )
