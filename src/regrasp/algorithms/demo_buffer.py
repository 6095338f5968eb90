"""Demonstrations that are trained on beside what a run collects."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from regrasp.config.types import BLOCK, Name


@dataclass(frozen=True, kw_only=True, config=BLOCK)
class DemoBufferConfig:
    """Demonstrations that are drawn beside the stored experience."""

    load_path: Name
    """Folder of the dataset, as `regrasp sft` takes it, or `org/name[@revision]` of the Hugging Face hub."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of every minibatch that is drawn from them."""

    def metrics(self, size: int) -> dict[str, float]:
        """What an update logs of them, of which there are `size`."""
        return {"demo_buffer/size": float(size), "demo_buffer/share": self.share}
