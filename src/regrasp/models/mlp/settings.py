"""Block `actor.model` of a state policy. Imports nothing heavy: a configuration is loaded without torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic.dataclasses import dataclass

from regrasp.config.types import BLOCK, PositiveFloat, Sizes
from regrasp.models.config import DatasetFacts, ModelConfig
from regrasp.models.inputs import InputNames

if TYPE_CHECKING:
    from regrasp.models.contract import Policy
    from regrasp.models.mlp.policy import MlpPolicy


@dataclass(frozen=True, config=BLOCK)
class MlpConfig:
    """Sizes of the state policy (`model_type: mlp`)."""

    hidden: Sizes = (256, 256)
    """Widths of the hidden layers."""
    initial_std: PositiveFloat = 0.5
    """Standard deviation of the actions before training."""


@dataclass(frozen=True, kw_only=True, config=BLOCK)
class MlpModelConfig(ModelConfig):
    """The policy, a Gaussian MLP on the state."""

    model_type: Literal["mlp", "regrasp_mlp"] = "mlp"
    """Which model; the names mean the same."""
    mlp: MlpConfig = MlpConfig()
    """Sizes of the state policy."""

    needs_pretrained: ClassVar[bool] = False
    uses_images: ClassVar[bool] = False
    imitates_without_noise: ClassVar[bool] = True

    @property
    def noise_key(self) -> str | None:
        """None for a model that has learned its noise, and for one whose noise depends on the state."""
        return "actor.model.mlp.initial_std" if self.model_path is None and not self.add_q_head else None

    @classmethod
    def open(cls, folder: Path, inputs: InputNames | None = None) -> MlpPolicy:
        """Load a folder; a state policy takes its state as it comes."""
        from regrasp.models.mlp.policy import load_mlp

        return load_mlp(folder)

    def load(self, folder: Path, inputs: InputNames) -> Policy:
        """Load a folder, with a value head or without, as this configuration says."""
        from regrasp.models.mlp.policy import load_mlp

        policy = super().load(folder, inputs)
        if ("value" in policy.offers) == self.add_value_head and not self.add_q_head:
            return policy
        return load_mlp(folder, add_value_head=self.add_value_head, q_head=self.q_head if self.add_q_head else None)

    def preview(self, folder: Path, inputs: InputNames) -> Policy:
        """The policy itself: it is small."""
        return self.load(folder, inputs)

    def build(self, state_dim: int, seed: int) -> MlpPolicy:
        """A policy with random weights, whose state and action are not normalised."""
        return self._policy(state_dim=state_dim, action_dim=self.action_dim, seed=seed)

    def from_dataset(self, data: DatasetFacts, *, backbone: Path | None, whole: bool, seed: int) -> MlpPolicy:
        """A policy with random weights and the data's statistics."""
        widths = {"state_dim": data.state.width, "action_dim": data.action.width}
        return self._policy(**widths, state=data.state, action=data.action, quaternions=data.quaternions, seed=seed)

    def oddities(self) -> Iterator[str]:
        """A part to train that this policy does not have."""
        if self.trainable != "head":
            yield f"actor.model.trainable has no effect with actor.model.model_type: {self.model_type}."

    def _policy(self, **arguments: Any) -> MlpPolicy:
        from regrasp.models.mlp.policy import MlpPolicy

        sizes: dict[str, Any] = {"hidden": self.mlp.hidden, "initial_std": self.mlp.initial_std}
        sizes |= {"num_action_chunks": self.num_action_chunks, "add_value_head": self.add_value_head}
        sizes |= {"squashed": self.add_q_head, "q_head": self.q_head if self.add_q_head else None}
        return MlpPolicy(**sizes, **arguments)
