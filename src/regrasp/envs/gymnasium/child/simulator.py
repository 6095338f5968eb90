"""Gymnasium environments as a `Simulator`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from regrasp.envs.gymnasium.child.environments import Environments, Info
from regrasp.envs.gymnasium.child.options import EnvOptions
from regrasp.envs.gymnasium.child.spaces import action_decoder, leaves
from regrasp.envs.process.simulator import Outcome, Simulator, SimulatorSpec
from regrasp.errors import UserError

_FPS = 30
"""Frames per second of a video, where the environment does not say."""


class GymnasiumSimulator(Simulator):
    """N environments of one process.

    Args:
        environments: The environments, just made.
        num_envs: N.
        options: Settings.

    Raises:
        UserError: A space is of a kind that cannot be used, or the options name what is not there.
    """

    def __init__(self, environments: Environments, num_envs: int, options: EnvOptions) -> None:
        self._environments = environments
        self._options = options
        self._leaves, self._unseen = leaves(environments.observation_space, options)
        self._actions = action_decoder(environments.action_space, options)
        environments.begin(self._leaves, num_envs)
        self._instructions = options.instructions or self._only_instruction(num_envs)

    def describe(self) -> SimulatorSpec:
        """What the spaces say."""
        rate = float(self._environments.metadata.get("render_fps") or _FPS)
        return SimulatorSpec(
            task_id=self._options.id,
            raw_observations={leaf.key: leaf.spec for leaf in self._leaves},
            action_dim=self._actions.width,
            instructions=self._instructions,
            step_seconds=1 / rate,
            max_episode_steps=self._options.max_episode_steps,
            tells_success=self._options.success_is_termination or self._options.success_key is not None,
            capabilities={
                "seed_per_env": self._environments.seeds_each,
                "partial_reset": self._environments.resets_each,
            },
            notes=tuple(f"observation '{key}' is no array, so no policy can see it" for key in self._unseen),
        )

    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> list[int]:
        """Start episodes; returns the indices of their instructions."""
        infos = self._environments.reset(rows, seeds)
        if self._options.instruction_key is None:
            return [0] * len(rows)
        return [self._index_of(self._instruction(row, infos[row])) for row in rows]

    def advance(self, actions: np.ndarray, running: np.ndarray) -> Outcome:
        """Step the running rows; what the limit of the block ends is left to it."""
        result = self._environments.step(self._actions.decode(actions), running)
        success = result.terminated if self._options.success_is_termination else np.zeros_like(running)
        if self._options.success_key is not None:
            ended = result.terminated | result.truncated
            success = success.copy()
            for row, info in result.infos.items():
                success[row] = self._succeeds(info, is_last=bool(ended[row]))
        return Outcome(result.rewards, result.terminated, result.truncated, success)

    def observe(self, rows: Sequence[int], targets: Mapping[str, np.ndarray]) -> None:
        """Write the present observations of `rows`."""
        for key, target in targets.items():
            target[rows] = self._environments.present[key][rows]

    def render(self, rows: Sequence[int], targets: Sequence[np.ndarray]) -> None:
        """Write what the environments render, scaled by the nearest pixel."""
        for frame, target in zip(self._environments.frames(rows), targets, strict=True):
            image = np.asarray(frame)
            vertical, horizontal = (
                np.arange(size) * available // size
                for size, available in zip(target.shape[:2], image.shape[:2], strict=True)
            )
            target[:] = image[vertical[:, None], horizontal]

    def close(self) -> None:
        """Close the environments."""
        self._environments.close()

    def _succeeds(self, info: Info, *, is_last: bool) -> bool:
        """Whether `info` tells success; it need not hold the key before the last step of an episode."""
        key = self._options.success_key
        assert key is not None
        if key not in info and not is_last:
            return False
        value = np.asarray(info.get(key))
        if key in info and value.size == 1 and value.dtype.kind in "biuf":
            return bool(value.item() > 0)
        raise UserError(
            "The info of an episode's last step does not tell success under this key",
            key=f"{self._options.location}.init_params.success_key",
            value=key,
            expected="a key with a truth value or a number, above 0 for success; info holds"
            f" {', '.join(sorted(map(str, info))) or 'nothing'}",
            fix="correct the name; or remove it, and results show the return alone",
        )

    def _only_instruction(self, num_envs: int) -> tuple[str]:
        """The instruction of the first episode, where none are listed."""
        if self._options.instruction_key is None:
            return ("",)
        infos = self._environments.reset(range(num_envs), [0] * num_envs)
        found = self._instruction(0, infos[0])
        if not isinstance(found, str):
            raise self._instruction_error(found, "a text; or the number of one, with instructions that lists them")
        return (found,)

    def _instruction(self, row: int, info: Info) -> Any:
        """What `instruction_key` gives for the episode that has begun in a row."""
        key = self._options.instruction_key
        assert key is not None
        if key in info:
            return info[key]
        try:
            return self._environments.attribute(row, key)
        except AttributeError as error:
            raise self._instruction_error(
                key, f"a key of the info of a reset ({', '.join(sorted(map(str, info))) or 'nothing'}), or an attribute"
            ) from error

    def _index_of(self, found: Any) -> int:
        """The index of an episode's instruction."""
        known = self._instructions
        if isinstance(found, str) and found in known:
            return known.index(found)
        if not isinstance(found, str) and np.ndim(found) == 0 and 0 <= found < len(known):
            return int(found)
        raise UserError(
            "The environment gave an episode an instruction that is not listed",
            key=f"{self._options.location}.init_params.instructions",
            value=list(known),
            expected=f"every instruction that the environment may give; it gave {found!r}",
            fix="list them all",
        )

    def _instruction_error(self, value: Any, expected: str) -> UserError:
        return UserError(
            "The environment does not tell its instruction there",
            key=f"{self._options.location}.init_params.instruction_key",
            value=value,
            expected=expected,
            fix="correct the name, or give one sentence in mapping.task_description",
        )
