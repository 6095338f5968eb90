# pyright: reportMissingImports=false, reportIncompatibleVariableOverride=false, reportAssignmentType=false
"""A user's package of Isaac Lab tasks, on the real managers; scene and physics are a few tensors.

Each environment is a point (x, y): actions are added to x, y starts at random. x beyond 0.35 is a success, below -0.35
a failure, and the episode lasts 10 steps.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from types import SimpleNamespace

import gymnasium as gym
import torch
from isaaclab.envs import DirectRLEnv, DirectRLEnvCfg, ManagerBasedRLEnv, ManagerBasedRLEnvCfg, mdp
from isaaclab.managers import (
    ActionManager,
    ActionTerm,
    ActionTermCfg,
    CommandManager,
    CurriculumManager,
    EventManager,
    ObservationManager,
    RewardManager,
    TerminationManager,
)
from isaaclab.managers import EventTermCfg as Event
from isaaclab.managers import ObservationGroupCfg as Group
from isaaclab.managers import ObservationTermCfg as Term
from isaaclab.managers import RewardTermCfg as Reward
from isaaclab.managers import TerminationTermCfg as Done
from isaaclab.scene import InteractiveSceneCfg
from isaaclab.sim import SimulationCfg
from isaaclab.utils import configclass

RAISE, DIE, HANG = 700.0, 800.0, 900.0


def position(env):
    return env.scene.position


def num_resets(env):
    return env.scene.num_resets[:, None]


def goal(env):
    return env.scene.num_resets[:, None] % 2


def construction(env):
    """The seed of the configuration, in two halves, and what was drawn while the scene was built."""
    seed = env.cfg.seed
    return torch.tensor([seed >> 16, seed & 0xFFFF, env.scene.drawn]).expand(env.num_envs, -1)


def joints(env):
    return env.scene.position[:, :1] + torch.arange(87.0)


def fingers(env):
    return env.scene.num_resets[:, None] + torch.arange(100.0, 114.0)


def camera(env):
    levels = (env.scene.position[:, :1] * 100 + 100).clamp(0, 255).to(torch.uint8)
    return levels[:, :, None, None].expand(-1, env.cfg.scene.front.height, env.cfg.scene.front.width, 3)


def normalised_camera(env):
    return camera(env).float()


def progress(env):
    return env.scene.position[:, 0] / env.step_dt


def failure_penalty(env):
    return -env.termination_manager.terminated.float() / env.step_dt


def update_stage(env):
    env.scene.stage[:] = (env.scene.position[:, 0] > 0.15).float()
    return env.scene.stage


def stage(env):
    return env.scene.stage / env.step_dt


def succeeded(env):
    return env.scene.position[:, 0] > 0.35


def failed(env):
    return env.scene.position[:, 0] < -0.35


def start(env, env_ids):
    env.scene.position[env_ids, 0] = 0
    env.scene.position[env_ids, 1] = torch.rand(len(env_ids))


def misbehave(command):
    if command == RAISE:
        raise RuntimeError("the actuator is on fire")
    if command == DIE:
        os.kill(os.getpid(), signal.SIGKILL)
    if command == HANG:
        print("waiting for an asset", flush=True)
        time.sleep(600)


class Push(ActionTerm):
    """Adds one of the actions to x."""

    def __init__(self, cfg, env):
        self.cfg, self._env = cfg, env
        self._raw = torch.zeros(env.num_envs, cfg.action_dim)

    action_dim = property(lambda self: self.cfg.action_dim)
    raw_actions = property(lambda self: self._raw)
    processed_actions = property(lambda self: self._raw)

    def process_actions(self, actions):
        misbehave(float(actions.max()))
        self._raw[:] = actions

    def apply_actions(self):
        self._env.scene.position[:, 0] += self._raw[:, self.cfg.driven] / self._env.cfg.decimation

    def reset(self, env_ids=None):
        self._raw[env_ids] = 0

    def __del__(self):
        pass


@configclass
class PushCfg(ActionTermCfg):
    class_type: type = Push
    asset_name: str = "robot"
    action_dim: int = 3
    driven: int = 0


@configclass
class ActionsCfg:
    push = PushCfg()


@configclass
class PolicyCfg(Group):
    position = Term(func=position)
    last_action = Term(func=mdp.last_action)
    num_resets = Term(func=num_resets)
    goal = Term(func=goal)
    construction = Term(func=construction)


@configclass
class CamerasCfg(Group):
    front = Term(func=camera)
    wrist = Term(func=camera)
    floating = Term(func=normalised_camera)

    def __post_init__(self):
        self.concatenate_terms = False


@configclass
class ObservationsCfg:
    policy = PolicyCfg()
    camera_images = CamerasCfg()


@configclass
class RewardsCfg:
    update_stage = Reward(func=update_stage, weight=0.0)
    progress = Reward(func=progress, weight=1.0)
    failure = Reward(func=failure_penalty, weight=1.0)


@configclass
class StageRewardsCfg:
    update_stage = Reward(func=update_stage, weight=0.0)
    stage = Reward(func=stage, weight=1.0)


@configclass
class TerminationsCfg:
    time_out = Done(func=mdp.time_out, time_out=True)
    failed = Done(func=failed)
    task_success = Done(func=succeeded)


@configclass
class NamelessTerminationsCfg:
    time_out = Done(func=mdp.time_out, time_out=True)
    reached = Done(func=succeeded)


@configclass
class EventsCfg:
    start = Event(func=start, mode="reset")


@configclass
class CameraCfg:
    height: int = 8
    width: int = 8
    data_types: tuple = ("rgb",)


@configclass
class SceneCfg(InteractiveSceneCfg):
    front: CameraCfg = CameraCfg()


@configclass
class PointCfg(ManagerBasedRLEnvCfg):
    sim: SimulationCfg = SimulationCfg(dt=0.01)
    decimation: int = 2
    episode_length_s: float = 0.2
    scene: SceneCfg = SceneCfg(num_envs=1, env_spacing=1.0)
    observations: ObservationsCfg = ObservationsCfg()
    actions: ActionsCfg = ActionsCfg()
    rewards: RewardsCfg = RewardsCfg()
    terminations: TerminationsCfg = TerminationsCfg()
    events: EventsCfg = EventsCfg()


@configclass
class TrocarPolicyCfg(Group):
    robot_joint_state = Term(func=joints)
    robot_dex3_joint_state = Term(func=fingers)

    def __post_init__(self):
        self.concatenate_terms = False


@configclass
class TrocarCamerasCfg(Group):
    front_camera = Term(func=camera)
    left_wrist_camera = Term(func=camera)
    right_wrist_camera = Term(func=camera)

    def __post_init__(self):
        self.concatenate_terms = False


@configclass
class TrocarObservationsCfg:
    policy = TrocarPolicyCfg()
    camera_images = TrocarCamerasCfg()


@configclass
class TrocarActionsCfg:
    push = PushCfg(action_dim=43, driven=15)


@configclass
class TrocarCfg(PointCfg):
    """The interface of the trocar task: 87 and 14 joint values, 43 actions, and a stage that a skipped term keeps."""

    observations: TrocarObservationsCfg = TrocarObservationsCfg()
    actions: TrocarActionsCfg = TrocarActionsCfg()
    rewards: StageRewardsCfg = StageRewardsCfg()


@configclass
class ImitationCfg(PointCfg):
    rewards = None  # as the stock imitation tasks
    terminations: NamelessTerminationsCfg = NamelessTerminationsCfg()


@configclass
class DirectPointCfg(DirectRLEnvCfg):
    sim: SimulationCfg = SimulationCfg(dt=0.01)
    decimation: int = 2
    episode_length_s: float = 0.2
    scene: SceneCfg = SceneCfg(num_envs=1, env_spacing=1.0)
    observation_space: int = 2
    action_space: int = 1


class Scene:
    """What is left of the scene."""

    def __init__(self, num_envs: int) -> None:
        self.sensors = {}
        self.num_envs = num_envs
        self.drawn = float(torch.rand(1))
        self.env_origins = torch.zeros(num_envs, 3)
        self.position = torch.zeros(num_envs, 2)
        self.stage = torch.zeros(num_envs)
        self.num_resets = torch.zeros(num_envs, dtype=torch.long)

    def keys(self) -> list[str]:
        return ["robot"]

    def reset(self, env_ids: Sequence[int]) -> None:
        self.num_resets[env_ids] += 1

    def write_data_to_sim(self) -> None:
        pass

    def update(self, dt: float) -> None:
        pass


def simulation(cfg):
    return SimpleNamespace(
        device=cfg.sim.device,
        has_gui=lambda: False,
        has_rtx_sensors=lambda: False,
        is_playing=lambda: True,
        step=lambda render: None,
        render=lambda *args: None,
        forward=lambda: None,
        get_physics_dt=lambda: cfg.sim.dt,
    )


def no_recorders():
    def nothing(*args):
        return {}

    names = ("pre_step", "post_step", "pre_reset", "post_reset", "post_physics_decimation_step")
    return SimpleNamespace(active_terms=[], reset=nothing, **{f"record_{name}": nothing for name in names})


class PointEnv(ManagerBasedRLEnv):
    """The real step and reset; only what `__init__` builds is replaced."""

    def __init__(self, cfg, **kwargs) -> None:
        self.cfg, self._is_closed, self.render_mode = cfg, True, None
        self.seed(cfg.seed)
        self.scene, self.sim = Scene(cfg.scene.num_envs), simulation(cfg)
        self.extras, self.obs_buf, self._sim_step_counter, self.common_step_counter = {}, {}, 0, 0
        self.episode_length_buf = torch.zeros(cfg.scene.num_envs, dtype=torch.long)
        self.event_manager = EventManager(cfg.events, self)
        self.command_manager = CommandManager(None, self)
        self.recorder_manager = no_recorders()
        self.action_manager = ActionManager(cfg.actions, self)
        self.observation_manager = ObservationManager(cfg.observations, self)
        self.termination_manager = TerminationManager(cfg.terminations, self)
        self.reward_manager = RewardManager(cfg.rewards, self)
        self.curriculum_manager = CurriculumManager(None, self)
        self._configure_gym_env_spaces()


class DirectPointEnv(DirectRLEnv):
    """The same task in the direct workflow."""

    def __init__(self, cfg, **kwargs) -> None:
        self.cfg, self._is_closed, self.render_mode = cfg, True, None
        self.seed(cfg.seed)
        self.scene, self.sim = Scene(cfg.scene.num_envs), simulation(cfg)
        self.extras, self.obs_buf, self._sim_step_counter, self.common_step_counter = {}, {}, 0, 0
        count = cfg.scene.num_envs
        self.episode_length_buf = torch.zeros(count, dtype=torch.long)
        self.reset_terminated = torch.zeros(count, dtype=torch.bool)
        self.reset_time_outs = torch.zeros(count, dtype=torch.bool)
        self.reached = torch.zeros(count, dtype=torch.bool)
        self._configure_gym_env_spaces()

    def _pre_physics_step(self, actions):
        misbehave(float(actions.max()))
        self._push = actions

    def _apply_action(self):
        self.scene.position[:, 0] += self._push[:, 0] / self.cfg.decimation

    def _get_observations(self):
        return {"policy": torch.cat([self.scene.position, self.scene.num_resets[:, None]], 1)}

    def _get_rewards(self):
        return self.scene.position[:, 0].clone()

    def _get_dones(self):
        self.reached = self.scene.position[:, 0] > 0.35
        return self.reached, self.episode_length_buf >= self.max_episode_length

    def _reset_idx(self, env_ids):
        self.scene.reset(env_ids)
        start(self, env_ids)
        self.episode_length_buf[env_ids] = 0


def register(name: str, env: type, cfg: type) -> None:
    gym.register(
        id=name,
        entry_point=f"{__name__}:{env.__name__}",
        kwargs={"env_cfg_entry_point": f"{__name__}:{cfg.__name__}"},
        disable_env_checker=True,
    )


register("Point-v0", PointEnv, PointCfg)
register("Isaac-Assemble-Trocar-G129-Dex3-Eval-v0", PointEnv, TrocarCfg)
register("Point-Imitation-v0", PointEnv, ImitationCfg)
register("Point-Direct-v0", DirectPointEnv, DirectPointCfg)
