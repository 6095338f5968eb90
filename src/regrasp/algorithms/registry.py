"""Which algorithm an experiment's `adv_type` and `loss_type` name."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any

from regrasp.algorithms.base import AlgorithmConfig
from regrasp.algorithms.grpo import GrpoConfig
from regrasp.algorithms.ppo import PpoConfig
from regrasp.algorithms.reinforce import ReinforceConfig
from regrasp.algorithms.sac_config import SacConfig
from regrasp.algorithms.self_imitation import SelfImitationConfig
from regrasp.config.owned import ByType, field_infos
from regrasp.errors import UserError
from regrasp.extras import entry_points

ENTRY_POINT_GROUP = "regrasp.algorithms"
_BUILT_IN: Mapping[str, type[AlgorithmConfig]] = {
    "gae": PpoConfig,
    "grpo": GrpoConfig,
    "reinpp": ReinforceConfig,
    "embodied_sac": SacConfig,
    "self_imitation": SelfImitationConfig,
}
"""`adv_type` to the algorithm's block."""


def known_algorithms() -> dict[str, type[AlgorithmConfig]]:
    """Every `adv_type` with its block: built in, or the entry point of that name of an installed package."""
    installed = {entry.name: entry.load() for entry in entry_points(group=ENTRY_POINT_GROUP)}
    return {**installed, **_BUILT_IN}


def algorithm_of(values: Mapping[str, Any]) -> type[AlgorithmConfig]:
    """The class of a block `algorithm`.

    Raises:
        UserError: There is none of this `adv_type`, or it goes with another `loss_type`.
    """
    known = known_algorithms()
    loss_types = {name: field_infos(block)["loss_type"].default for name, block in known.items()}
    pairs = ", ".join(f"adv_type {name} with loss_type {loss}" for name, loss in loss_types.items())
    adv_type, loss_type = values["adv_type"], values.get("loss_type")
    if adv_type not in known:
        close = get_close_matches(adv_type, list(known), n=1)
        near = f"did you mean {close[0]}? or " if close else "correct it, or "
        raise UserError(
            "Unknown algorithm",
            key="algorithm.adv_type",
            value=adv_type,
            expected=pairs,
            fix=f"{near}install the package that provides it, as an entry point of {ENTRY_POINT_GROUP}",
        )
    if loss_type not in (None, loss_types[adv_type]):
        raise UserError(
            f"Unknown loss for the advantages {adv_type}",
            key="algorithm.loss_type",
            value=loss_type,
            expected=pairs,
            fix=f"set algorithm.loss_type={loss_types[adv_type]}, or another adv_type",
        )
    return known[adv_type]


AnyAlgorithmConfig = Annotated[AlgorithmConfig, ByType("adv_type", known_algorithms, algorithm_of, default="gae")]
"""The type of `algorithm`."""
