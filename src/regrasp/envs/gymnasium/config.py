"""What Gymnasium adds to the blocks `env.train` and `env.eval`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from regrasp.config.types import BLOCK, Expect, Name, Names, PositiveInt
from regrasp.envs.config import EnvConfig, EvalEnvConfig, InitParams, TrainEnvConfig
from regrasp.envs.mapping_config import MappingConfig
from regrasp.errors import UserError


@dataclass(frozen=True, config=BLOCK)
class GymnasiumMapping(MappingConfig):
    """Observations and actions of a Gymnasium environment."""

    action_bounds: Literal["clip", "rescale"] = "clip"
    """What the mapped action means where the action space is a Box: `clip`, the action itself, clipped to the bounds
    that there are; `rescale`, [-1, 1] for the range between the bounds, which have to be finite, clipped to it."""


Kwargs = Annotated[dict[str, Any], Expect("a block of arguments of the environment")]


@dataclass(frozen=True, config=BLOCK)
class GymnasiumTask:
    """One of several tasks: an environment and its instruction."""

    instruction: Name
    """What the policy is told; results are also shown by it."""
    id: Name | None = None
    """Environment; null: that of `init_params`."""
    kwargs: Kwargs = field(default_factory=dict)
    """Arguments of `gymnasium.make`, beside those of `init_params`."""


@dataclass(frozen=True, config=BLOCK)
class GymnasiumInitParams(InitParams):
    """Which environment, how it is made, and where it tells success and instruction."""

    kwargs: Kwargs = field(default_factory=dict)
    """Further arguments of `gymnasium.make`."""
    tasks: Annotated[tuple[GymnasiumTask, ...], Field(strict=False)] = ()
    """Several tasks for one policy, each a block `{instruction, id, kwargs}`; the seed of an episode chooses one."""
    pixels: Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False), Expect("[height, width]")] | None = None
    """Height and width of the image that the environment renders, as the observation `pixels`; null: none."""
    expert: Name | None = None
    """Scripted expert, `module:function` of the simulator's Python: `function(env)` is called for each episode and
    gives a function from the raw observation to the raw action; null: none."""
    vector: bool | None = None
    """Use the id's `vector_entry_point`, one `VectorEnv` per process, in place of single environments; null: only where
    the id has nothing else."""
    success_key: Name | None = None
    """Key of `info` that tells success; null: not from `info`."""
    success: Literal["terminated"] | None = None
    """`terminated`: an episode that the task ends is a success; null: not so. Without this and `success_key` a task
    tells no success, and results show the return alone."""
    instruction_key: Name | None = None
    """Key of the `info` of a reset, or else attribute of the environment, that holds the episode's instruction, a text
    or the number of one of `instructions`; null: `mapping.task_description`."""
    instructions: Names = ()
    """Every instruction that `instruction_key` may give; empty: the one of the first episode is that of all."""


@dataclass(frozen=True, config=BLOCK)
class GymnasiumEnvConfig(EnvConfig):
    """One set of parallel environments of Gymnasium."""

    init_params: GymnasiumInitParams
    """Which environment, how it is made, and where it tells success and instruction."""
    mapping: GymnasiumMapping
    """Observations and actions."""

    def problems(self, key: str) -> Iterator[UserError]:
        """See `EnvConfig.problems`; also two sources of success, instructions that nothing chooses from."""
        yield from super().problems(key)
        init = self.init_params
        if init.success is not None and init.success_key is not None:
            yield UserError(
                "Two sources of success",
                key=f"{key}.init_params.success",
                value=init.success,
                expected=f"null, since {key}.init_params.success_key is given",
                fix=f"remove {key}.init_params.success or {key}.init_params.success_key",
            )
        if init.instructions and init.instruction_key is None:
            yield UserError(
                "Nothing chooses from the instructions",
                key=f"{key}.init_params.instructions",
                value=init.instructions,
                expected=f"none, without {key}.init_params.instruction_key",
                fix=f"give {key}.init_params.instruction_key, or one sentence in {key}.mapping.task_description",
            )
        if init.tasks and (init.instruction_key is not None or init.vector):
            name = "vector" if init.vector else "instruction_key"
            yield UserError(
                "Tasks are single environments that each have an instruction",
                key=f"{key}.init_params.{name}",
                value=getattr(init, name),
                expected=f"null, since {key}.init_params.tasks is given",
                fix=f"remove {key}.init_params.{name} or {key}.init_params.tasks",
            )
        if self.ignore_terminations:
            yield UserError(
                "What a Gymnasium environment does after it has terminated is not defined",
                key=f"{key}.ignore_terminations",
                value=True,
                expected="false",
                fix=f"remove {key}.ignore_terminations; many environments have an argument for it, for"
                f" {key}.init_params.kwargs (terminate_when_unhealthy: false)",
            )


@dataclass(frozen=True, config=BLOCK, kw_only=True)
class GymnasiumTrainConfig(GymnasiumEnvConfig, TrainEnvConfig):
    """The environments of training in Gymnasium."""


@dataclass(frozen=True, config=BLOCK)
class GymnasiumEvalConfig(GymnasiumEnvConfig, EvalEnvConfig):
    """The environments of an evaluation in Gymnasium."""
