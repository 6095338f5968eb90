"""Towers, projector, language model and heads of OpenVLA, under the published names."""
