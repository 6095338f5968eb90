"""Block `env`: the simulators of training and evaluation, and the mapping between simulator and policy."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from regrasp.config.schema.types import (
    BLOCK,
    Expect,
    Name,
    Names,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Slice,
)


@dataclass(frozen=True, config=BLOCK)
class StateEntry:
    """One observation vector of the simulator that becomes part of the policy's state."""

    key: Name
    """Observation key, with or without its group (`policy/gripper_position`)."""
    slice: Slice | None = None
    """Range of the vector that is used; null: all of it."""


def _entry_from_key(value: Any) -> Any:
    return StateEntry(key=value) if isinstance(value, str) and value else value


States = Annotated[
    tuple[
        Annotated[
            StateEntry,
            BeforeValidator(_entry_from_key),
            Expect("an observation key, or a block with the keys key and slice"),
        ],
        ...,
    ],
    Field(strict=False),
]


@dataclass(frozen=True, config=BLOCK)
class Gr00tVideoMapping:
    """GR00T's names of the camera views."""

    main_images: Name
    """Name of the main view (`video.room_view`)."""
    extra_view_images: Names = ()
    """Names of the extra views, in the order of the mapping's `extra_view_images`."""


@dataclass(frozen=True, config=BLOCK)
class Gr00tStateEntry:
    """GR00T's name of a part of the state."""

    gr00t_key: Name
    """Name of the part (`state.left_arm`)."""
    slice: Slice
    """Range of the concatenated state that it covers."""


@dataclass(frozen=True, config=BLOCK)
class Gr00tMapping:
    """How the policy's inputs are called in the statistics of a GR00T checkpoint."""

    video: Gr00tVideoMapping
    """Names of the camera views."""
    state: Annotated[tuple[Gr00tStateEntry, ...], Field(strict=False)]
    """Names of the parts of the state."""


@dataclass(frozen=True, config=BLOCK)
class ActionMapping:
    """How a policy's action becomes a simulator's action: scale, then pad with zeros."""

    prefix_pad: NonNegativeInt = 0
    """Zeros before the policy's action."""
    suffix_pad: NonNegativeInt = 0
    """Zeros after the policy's action."""
    scale: float | Annotated[tuple[float, ...], Field(strict=False)] = 1.0
    """Factor of the policy's action: one number, or one per dimension."""


@dataclass(frozen=True, config=BLOCK)
class MappingConfig:
    """Which observations of the simulator the policy sees and how its actions reach the actuators."""

    task_description: Name | None = None
    """Instruction given to the policy; null: the task's own."""
    main_images: Name | None = None
    """Key of the main camera; null: no images."""
    extra_view_images: Names = ()
    """Keys of further cameras."""
    states: States = ()
    """State vectors, concatenated in this order; each a key or `{key, slice}`."""
    gr00t_mapping: Gr00tMapping | None = None
    """Names of these inputs in a GR00T checkpoint; null: the checkpoint was made by Regrasp."""
    action_mapping: ActionMapping = ActionMapping()
    """How the policy's action becomes the simulator's."""
    obs_converter_type: Name | None = None
    """Name of the robot's layout in the reference; it must agree with `actor.model`."""
    embodiment_tag: Name = "new_embodiment"
    """Embodiment whose normalisation statistics are used."""
    embodiment_tag_id: Annotated[int, Field(ge=0, le=31)] = 31
    """Slot of the embodiment's projectors in a GR00T checkpoint."""
    data_config_class: Name | None = None
    """Data configuration of the checkpoint, as `module:Class`."""


@dataclass(frozen=True, config=BLOCK)
class VideoConfig:
    """Videos of episodes."""

    save_video: bool = False
    """Record episodes as MP4."""
    info_on_video: bool = True
    """Write instruction, step, reward and outcome onto the frames."""
    video_base_dir: Name | None = None
    """Folder of the videos; null: `videos` in the run's log folder."""


@dataclass(frozen=True, config=BLOCK)
class InitParams:
    """What the simulator is started with."""

    id: Name
    """Task, by its registered name."""
    num_envs: PositiveInt | None = None
    """The reference's second name of `total_num_envs`, which it must equal; null: not given."""
    max_episode_steps: PositiveInt | None = None
    """The reference's second name of the environment's `max_episode_steps`, which it must equal; null: not given."""
    task_options: Annotated[dict[str, Any], Expect("a block of options that the task knows")] = field(
        default_factory=dict
    )
    """The task's own options, which it checks itself; only tasks of the embedded simulator have any."""


@dataclass(frozen=True, config=BLOCK)
class TimeoutsConfig:
    """Seconds after which a silent simulator is an error."""

    startup_s: PositiveFloat = 300.0
    """Start of the simulator's process."""
    reset_s: PositiveFloat = 120.0
    """One reset."""
    step_s: PositiveFloat = 120.0
    """One action chunk."""


@dataclass(frozen=True, config=BLOCK)
class EnvConfig:
    """One set of parallel environments."""

    env_type: Name
    """Simulator: `mujoco`, `isaaclab`, `gymnasium`, or a registered name."""
    total_num_envs: PositiveInt
    """Environments stepped together."""
    max_episode_steps: PositiveInt
    """An episode is truncated after this many environment steps."""
    init_params: InitParams
    """What the simulator is started with."""
    mapping: MappingConfig
    """Observations and actions; `isaaclab` is another name of this block."""
    ignore_terminations: bool = False
    """Let episodes run to the step limit, whatever the task says."""
    seed: NonNegativeInt = 0
    """Seed of the episodes; training and evaluation draw from different streams even where it is equal."""
    video_cfg: VideoConfig = VideoConfig()
    """Videos of episodes."""
    num_workers: PositiveInt | None = None
    """Simulator processes; null: one per free core."""
    timeouts: TimeoutsConfig = TimeoutsConfig()
    """Deadlines of the simulator's processes."""
    python: Name | None = None
    """Interpreter of the simulator's processes; null: the one that runs Regrasp."""


@dataclass(frozen=True, config=BLOCK, kw_only=True)
class TrainEnvConfig(EnvConfig):
    """The environments of training."""

    max_steps_per_rollout_epoch: PositiveInt
    """Environment steps per environment and rollout epoch; a multiple of `actor.model.num_action_chunks`."""
    auto_reset: bool = False
    """Begin a new episode where one ends; otherwise a rollout epoch holds one episode per environment."""


@dataclass(frozen=True, config=BLOCK)
class EvalEnvConfig(EnvConfig):
    """The environments of an evaluation."""

    num_episodes: PositiveInt = 500
    """Episodes of one evaluation pass, each with its own fixed seed."""
    inference_block: PositiveInt = 32
    """Rows of one padded inference call, so that an outcome does not depend on the number of environments."""


@dataclass(frozen=True, config=BLOCK)
class EnvsConfig:
    """The environments of training and of evaluation."""

    train: TrainEnvConfig
    """Environments of training."""
    eval: EvalEnvConfig
    """Environments of evaluation."""
