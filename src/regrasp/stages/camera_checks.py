"""Images of demonstrations that no camera can have meant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np


class CameraChecks:
    """Counts black and constant images, and first images that are the last of the episode before.

    The last come from simulators that render a reset one step late.
    """

    def __init__(self) -> None:
        self._num_episodes = 0
        self._images: Counter[str] = Counter()
        self._black: Counter[str] = Counter()
        self._constant: Counter[str] = Counter()
        self._late: Counter[str] = Counter()
        self._last: dict[str, np.ndarray] = {}

    def add(self, columns: Mapping[str, np.ndarray]) -> None:
        """Look at an episode's cameras, those of shape (T, H, W, 3)."""
        self._num_episodes += 1
        for name, images in columns.items():
            if images.ndim != 4:
                continue
            constant = (images == images[:, :1, :1]).all(axis=(1, 2, 3))
            black = constant & (images[:, 0, 0] == 0).all(axis=1)
            self._images[name] += len(images)
            self._black[name] += int(black.sum())
            self._constant[name] += int((constant & ~black).sum())
            last = self._last.get(name)
            self._late[name] += bool(last is not None and not constant[0] and np.array_equal(images[0], last))
            self._last[name] = images[-1].copy()

    def warnings(self) -> list[str]:
        """A line for each camera and finding."""
        findings = []
        for name, total in self._images.items():
            for kind, counts in (("wholly black", self._black), ("of one colour", self._constant)):
                if counts[name]:
                    findings.append(f"{counts[name]} of {total} images of {name} are {kind}.")
            if self._late[name]:
                findings.append(
                    f"{self._late[name]} of {self._num_episodes} episodes begin, in {name}, with the last image of the"
                    " episode before: the simulator did not render after its reset. Record again with rendering after"
                    " resets (in Isaac Lab: num_rerenders_on_reset, or rerender_on_reset)."
                )
        return findings
