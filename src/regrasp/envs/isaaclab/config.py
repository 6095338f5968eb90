"""What Isaac Lab adds to the blocks `env.train` and `env.eval`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from regrasp.config.parse import refusal
from regrasp.config.types import BLOCK, Expect, Name, Names, PositiveInt
from regrasp.envs.config import EnvConfig, EvalEnvConfig, InitParams, TrainEnvConfig
from regrasp.envs.mapping_config import MappingConfig

_SIZE = {"height", "width"}


@dataclass(frozen=True, config=BLOCK)
class IsaacLabMapping(MappingConfig):
    """Observations and actions of an Isaac Lab task, its reward and its instruction."""

    reward_source: Literal["task", "success"] = "task"
    """`task`: the task's own reward; `success`: 1 in the first step of success."""
    success_term: Name | None = None
    """Termination term that tells success; null: the one called success or task_success."""
    call_zero_weight_terms: Names = ()
    """Reward terms of weight 0 that are called once per step all the same."""
    instruction_key: Name | None = None
    """Integer observation that chooses among `instructions`; null: `task_description`."""
    instructions: Names = ()
    """The instructions that `instruction_key` chooses from."""

    def instruction_choice(self) -> tuple[str | None, tuple[str, ...]]:
        """`instruction_key` and `instructions`."""
        return self.instruction_key, self.instructions


@dataclass(frozen=True, config=BLOCK)
class IsaacLabInitParams(InitParams):
    """What Isaac Lab is started with."""

    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$"), Expect("'cpu', or 'cuda:<n>'")] = "cuda:0"
    """Device of the simulation, `cpu` or `cuda:<n>`; one simulator per GPU."""
    headless: bool = True
    """Run without a window."""
    camera_size: (
        Annotated[
            tuple[PositiveInt, PositiveInt], Field(strict=False), Expect("[height, width], two integers of at least 1")
        ]
        | None
    ) = None
    """(height, width) of every camera of the task; null: the task's own."""
    presets: Names = ()
    """Configuration presets of Isaac Lab 3.x, such as `physics=newton_mjwarp`."""
    hold_action: Literal["last", "zero"] = "last"
    """What an environment executes after its end: `last` suits absolute targets, `zero` relative ones."""

    @model_validator(mode="before")
    @classmethod
    def _size_of_cameras(cls, values: Any) -> Any:
        """RLinf gives each camera a block `{height, width}`; here one size holds for all."""
        if not isinstance(values, dict):
            return values
        cameras = {key: block for key, block in values.items() if isinstance(block, dict) and set(block) == _SIZE}
        sizes = {(block["height"], block["width"]) for block in cameras.values()}
        if len(sizes) > 1:
            raise refusal("Cameras of different sizes", cameras, "the same height and width for all cameras")
        own = {key: value for key, value in values.items() if key not in cameras}
        return own if own.get("camera_size") or not sizes else own | {"camera_size": list(sizes.pop())}


@dataclass(frozen=True, config=BLOCK)
class IsaacLabEnvConfig(EnvConfig):
    """One set of parallel environments in Isaac Lab."""

    seeds_each = False
    init_params: IsaacLabInitParams
    """What Isaac Lab is started with."""
    mapping: Annotated[
        IsaacLabMapping,
        Expect(
            "a block with the keys main_images, states, action_mapping and others (docs/configuration.md), which RLinf"
            " has in its code for tasks of its own; the experiments isaaclab_stack_cube_ppo_groot and"
            " isaaclab_ppo_gr00t_assemble_trocar have one"
        ),
    ]
    """Observations and actions; `isaaclab` is another name of this block."""


@dataclass(frozen=True, config=BLOCK, kw_only=True)
class IsaacLabTrainConfig(IsaacLabEnvConfig, TrainEnvConfig):
    """The environments of training in Isaac Lab."""


@dataclass(frozen=True, config=BLOCK)
class IsaacLabEvalConfig(IsaacLabEnvConfig, EvalEnvConfig):
    """The environments of an evaluation in Isaac Lab."""
