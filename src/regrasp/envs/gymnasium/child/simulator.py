"""Gymnasium environments as a `Simulator`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from regrasp.envs.gymnasium.child.environments import Environments, Info
from regrasp.envs.gymnasium.child.make import how_to_mend, load_expert, place_of
from regrasp.envs.gymnasium.child.options import EnvOptions
from regrasp.envs.gymnasium.child.pixels import check_renders, render_error, resized
from regrasp.envs.gymnasium.child.spaces import ActionDecoder, Leaf, action_decoder, leaves
from regrasp.envs.process.simulator import ArraySpec, Outcome, Simulator, SimulatorSpec
from regrasp.errors import UserError

_FPS = 30
"""Frames per second of a video, where the environment does not say."""
PIXELS = "pixels"
"""Name of the observation that is what the environment renders."""
_NOT_REPEATABLE = (
    "two resets with one seed began two different episodes, so no evaluation can be repeated; wrap the environment in"
    " one whose reset draws everything from its seed"
)


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
        self._leaves, self._unseen, self._actions = _layout(environments, options)
        if options.renders:
            check_renders(environments.metadata, options)
        environments.begin(self._leaves, num_envs)
        self._new_expert = None if options.expert is None else load_expert(options)
        self._experts: dict[int, Callable[[Any], Any]] = {}
        """Those that act in the present episodes."""
        self._instructions = (
            tuple(dict.fromkeys(task["instruction"] for task in options.tasks))
            or options.instructions
            or self._only_instruction(num_envs)
        )
        self._repeats = self._is_repeatable(num_envs)

    def describe(self) -> SimulatorSpec:
        """What the spaces say."""
        rate = float(self._environments.metadata.get("render_fps") or _FPS)
        return SimulatorSpec(
            task_id=self._options.id,
            raw_observations={leaf.key: leaf.spec for leaf in self._leaves} | self._pixels(),
            action_dim=self._actions.width,
            instructions=self._instructions,
            step_seconds=1 / rate,
            max_episode_steps=self._options.max_episode_steps,
            tells_success=self._options.success_is_termination or self._options.success_key is not None,
            has_expert=self._new_expert is not None,
            capabilities={
                "seed_per_env": self._environments.seeds_each and self._repeats,
                "partial_reset": self._environments.resets_each,
            },
            notes=(
                *(f"observation '{key}' is no array, so no policy can see it" for key in self._unseen),
                *(() if self._repeats else (_NOT_REPEATABLE,)),
            ),
        )

    def _pixels(self) -> dict[str, ArraySpec]:
        size = self._options.pixels
        return {} if size is None else {PIXELS: ArraySpec((*size, 3), "uint8")}

    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> list[int]:
        """Start episodes; returns the indices of their instructions."""
        infos = self._environments.reset(rows, seeds)
        for row in rows:
            self._experts.pop(row, None)
        if tasks := self._options.tasks:
            return [self._instructions.index(tasks[self._environments.task_of(row)]["instruction"]) for row in rows]
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
            if key == PIXELS and self._options.pixels is not None:
                for row, frame in zip(rows, self._frames(rows), strict=True):
                    target[row] = resized(frame, target.shape[1:3], self._options)
            else:
                target[rows] = self._environments.present[key][rows]

    def render(self, rows: Sequence[int], targets: Sequence[np.ndarray]) -> None:
        """Write what the environments render, scaled to the size of the targets."""
        for frame, target in zip(self._frames(rows), targets, strict=True):
            target[:] = resized(frame, target.shape[:2], self._options)

    def _frames(self, rows: Sequence[int]) -> Sequence[Any]:
        """What the environments render.

        Raises:
            UserError: They cannot: a package is missing, or there is no display.
        """
        try:
            return self._environments.frames(rows)
        except Exception as error:
            raise render_error(self._options, error, how_to_mend(self._options, error)) from error

    def expert(self, rows: Sequence[int], target: np.ndarray) -> None:
        """Ask the scripted expert of each row's episode, and turn its action into the vector that stands for it."""
        assert self._new_expert is not None
        for row in rows:
            try:
                if row not in self._experts:
                    self._experts[row] = self._new_expert(self._environments.of(row))
                target[row] = self._actions.encode(self._experts[row](self._environments.raw[row]))
            except Exception as error:
                raise UserError(
                    f"The expert failed: {type(error).__name__}: {error}",
                    key=f"{self._options.location}.init_params.expert",
                    value=self._options.expert,
                    expected=f"a function that gives an action of {self._environments.offered[0][1]}",
                    fix=f"see {place_of(error)}",
                ) from error

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

    def _is_repeatable(self, num_envs: int) -> bool:
        """Whether two resets with one seed begin the same episode."""
        rows = [0] if self._environments.resets_each else range(num_envs)
        seen = []
        for _ in range(2):
            self._environments.reset(rows, [0] * len(rows))
            seen.append({key: values[0].copy() for key, values in self._environments.present.items()})
        return all(np.array_equal(values, seen[1][key], equal_nan=True) for key, values in seen[0].items())

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


def _layout(environments: Environments, options: EnvOptions) -> tuple[list[Leaf], list[str], ActionDecoder]:
    """Observations, unseen ones and actions, which all tasks have in common.

    Raises:
        UserError: They have not; or a space is of a kind that cannot be used.
    """
    (found, unseen), *others = [leaves(observations, options) for observations, _ in environments.offered]
    decoder, *further = [action_decoder(actions, options) for _, actions in environments.offered]
    specs = {leaf.key: leaf.spec for leaf in found}
    if options.pixels is not None and PIXELS in specs:
        raise UserError(
            "The environment has an observation of this name already",
            key=f"{options.location}.init_params.pixels",
            value=list(options.pixels),
            expected=f"null: observation '{PIXELS}' is {specs[PIXELS]}",
            fix=f"remove {options.location}.init_params.pixels",
        )
    for number, ((leaves_of, _), actions) in enumerate(zip(others, further, strict=True), start=1):
        other = {leaf.key: leaf.spec for leaf in leaves_of}
        if other != specs or actions.width != decoder.width:
            raise UserError(
                "The tasks do not have the same observations and actions",
                key=f"{options.location}.init_params.tasks[{number}]",
                value=f"{actions.width} action values, observations {_listed(other)}",
                expected=f"as the first task: {decoder.width} action values, observations {_listed(specs)}",
                fix="wrap the environments so that they agree",
            )
    return found, unseen, decoder


def _listed(specs: Mapping[str, ArraySpec]) -> str:
    return ", ".join(f"{key} {spec.shape}" for key, spec in sorted(specs.items()))
