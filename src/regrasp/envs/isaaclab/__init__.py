"""Isaac Lab tasks. The modules under `child/` run in Isaac Sim's own process and Python."""
