# pyright: reportMissingImports=false, reportIncompatibleVariableOverride=false, reportAssignmentType=false
# pyright: reportAttributeAccessIssue=false
"""Records a stand-in task with Isaac Lab's real recorder manager: `python record_points.py <file.hdf5>`.

Two environments, pushed by 0.1 and by 0.01 per step for 12 steps: the first succeeds three times, the second runs out
of time. Besides Isaac Lab's own recorder terms there is one of the user's, for the cameras.
"""

from __future__ import annotations

import sys
from pathlib import Path

from isaaclab.app import AppLauncher

launcher = AppLauncher(headless=True, device="cpu")

import lab_tasks  # noqa: E402
import torch  # noqa: E402
from isaaclab.envs import mdp  # noqa: E402
from isaaclab.envs.mdp.recorders import recorders_cfg  # noqa: E402
from isaaclab.managers import (  # noqa: E402
    RecorderManager,
    RecorderManagerBaseCfg,
    RecorderTerm,
    RecorderTermCfg,
)
from isaaclab.managers import TerminationTermCfg as Done  # noqa: E402
from isaaclab.utils import configclass  # noqa: E402


class CameraRecorder(RecorderTerm):
    """The observation group `camera_images`, which the stock terms leave out."""

    def record_pre_step(self):
        return "obs/camera_images", self._env.obs_buf["camera_images"]


@configclass
class CameraRecorderCfg(RecorderTermCfg):
    class_type: type = CameraRecorder


@configclass
class RecordersCfg(RecorderManagerBaseCfg):
    actions = recorders_cfg.PreStepActionsRecorderCfg()
    observations = recorders_cfg.PreStepFlatPolicyObservationsRecorderCfg()
    cameras = CameraRecorderCfg()


@configclass
class TerminationsCfg:
    time_out = Done(func=mdp.time_out, time_out=True)
    success = Done(func=lab_tasks.succeeded)


def main(target: Path) -> None:
    cfg = lab_tasks.PointCfg()
    cfg.scene.num_envs, cfg.sim.device, cfg.seed = 2, "cpu", 0
    cfg.terminations = TerminationsCfg()
    cfg.observations.policy.concatenate_terms = False
    cfg.env_name = "Point-v0"
    env = lab_tasks.PointEnv(cfg)
    recorders = RecordersCfg()
    recorders.dataset_export_dir_path, recorders.dataset_filename = str(target.parent), target.stem
    env.recorder_manager = RecorderManager(recorders, env)
    env.reset()
    for _ in range(12):
        env.step(torch.tensor([[0.1, 0.0, 0.0], [0.01, 0.0, 0.0]]))
    env.recorder_manager.close()
    launcher.app.close()


main(Path(sys.argv[1]).resolve())
