"""Pure functions on tensors: advantages, PPO losses, log-probability reduction, flow sampling, schedules."""
