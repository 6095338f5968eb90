"""The embedded MuJoCo simulator and its tasks."""
