"""Which of MuJoCo's headless graphics backends works on this machine. Does not import MuJoCo here."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

from regrasp.errors import UserError

PACKAGES = ("libegl1", "libgl1-mesa-dri")
"""Debian and Ubuntu packages that make EGL rendering work without a GPU."""
_PROBE = """
import os, sys
try:
    import mujoco
    scene = '<mujoco><worldbody><geom size=".1"/></worldbody></mujoco>'
    renderer = mujoco.Renderer(mujoco.MjModel.from_xml_string(scene), 16, 16)
    renderer.render()
    renderer.close()
except Exception as error:
    print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(1)  # without what half made objects say at the end
"""
_PROBE_SECONDS = 120


@functools.cache
def working_backend() -> str | None:
    """The value of MUJOCO_GL that renders here, the user's own choice first; None if none does."""
    return next((backend for backend in _candidates() if probe(backend) is None), None)


def _candidates() -> list[str]:
    chosen = os.environ.get("MUJOCO_GL")
    return [chosen] if chosen else ["egl", "osmesa"] if sys.platform == "linux" else ["cgl", "glfw"]


def graphics(backend: str) -> dict[str, str]:
    """The environment variables under which a process renders with a backend; PyOpenGL has one of its own."""
    return {"MUJOCO_GL": backend} | ({"PYOPENGL_PLATFORM": backend} if backend in ("egl", "osmesa") else {})


def probe(backend: str) -> str | None:
    """Render one image in a process of its own: None if that works, else the last line of the error."""
    try:
        result = subprocess.run(
            [sys.executable, "-c", _PROBE],
            env={**os.environ, **graphics(backend), "LP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"no image within {_PROBE_SECONDS} seconds"
    if result.returncode == 0:
        return None
    return (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]


def require_backend() -> str:
    """The working backend.

    Raises:
        UserError: No backend renders; names the packages that would change that.
    """
    backend = working_backend()
    if backend is None:
        chosen = os.environ.get("MUJOCO_GL")
        place = {"file": "the environment", "key": "MUJOCO_GL", "value": chosen} if chosen else {}
        raise UserError(
            "This machine cannot render images headless: "
            + "; ".join(f"{name} fails with {probe(name)}" for name in _candidates()),
            expected="a working EGL or OSMesa library",
            fix=("unset MUJOCO_GL, and Regrasp chooses; " if chosen else "")
            + f"if a library is missing, on Debian or Ubuntu: sudo apt-get install {' '.join(PACKAGES)}",
            **place,
        )
    return backend


def require_chosen_backend() -> None:
    """Check the backend that the user's MUJOCO_GL names, without which importing MuJoCo fails.

    Raises:
        UserError: It renders nothing here.
    """
    if not os.environ.get("MUJOCO_GL"):
        return
    chosen, other = graphics(require_backend()), os.environ.get("PYOPENGL_PLATFORM")
    if other not in (None, "", chosen.get("PYOPENGL_PLATFORM", other)):
        raise UserError(
            "Two environment variables choose different graphics libraries",
            file="the environment",
            key="PYOPENGL_PLATFORM",
            value=other,
            expected=f"{chosen['PYOPENGL_PLATFORM']}, as MUJOCO_GL says, or nothing",
            fix="unset PYOPENGL_PLATFORM",
        )
