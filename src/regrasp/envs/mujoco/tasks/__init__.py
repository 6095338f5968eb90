"""The embedded tasks, one file each, listed in `regrasp.envs.mujoco.catalog`."""
