"""The GR00T N1.5 architecture: one class for the tiny configuration and the published one."""
