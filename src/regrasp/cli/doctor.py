"""`regrasp doctor`: what this machine can run, and what each missing piece would enable."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import resource
import shlex
import shutil
import sys

from regrasp.extras import EXTRAS, install_command
from regrasp.logging.text import counted

_MIN_MEMORY_GB = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    parser.add_argument("--rendering", action="store_true", help="check rendering only; exit code 2 if nothing renders")


def run(args: argparse.Namespace) -> int:
    """Print the report; exit code 2 if the embedded simulator cannot render."""
    if args.rendering:
        from regrasp.envs.mujoco.backend import require_backend

        print(f"rendering   {require_backend()} works")
        return 0
    _system()
    _torch()
    _packages()
    return 0 if _rendering() else 2


def _line(name: str, text: str) -> None:
    print(f"{name:<13}{text}")


def _system() -> None:
    import psutil

    from regrasp.device import available_cores, available_memory
    from regrasp.envs.process.protocol import SHARED_MEMORY
    from regrasp.experiment.machine import free_shared_memory

    total, available = psutil.virtual_memory().total, available_memory()
    _line("Python", f"{platform.python_version()} ({sys.executable})")
    _line("system", f"{platform.system()} {platform.machine()}, {counted(available_cores(), 'core')}")
    enough = "" if available > _MIN_MEMORY_GB * 2**30 else f" (the quickstart needs {_MIN_MEMORY_GB} GiB)"
    _line("memory", f"{available / 2**30:.1f} of {total / 2**30:.1f} GiB free{enough}")
    _line("shared", f"{free_shared_memory() / 2**30:.2f} GiB free in {SHARED_MEMORY}, for images of the environments")
    _line("open files", f"at most {resource.getrlimit(resource.RLIMIT_NOFILE)[0]}")
    disk = shutil.disk_usage(".")
    _line("disk", f"{disk.free / 2**30:.0f} GiB free here")


def _torch() -> None:
    import torch

    _line("torch", f"{torch.__version__}, {torch.get_num_threads()} CPU threads")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            _line("GPU", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    else:
        _line("GPU", "none that torch can use; the tiny policies train on the CPU, a full-size GR00T needs one")
    try:
        version = importlib.metadata.version("torchvision")
    except importlib.metadata.PackageNotFoundError:
        return
    _line("torchvision", f"{version} is installed. Regrasp does not use it; if transformers fails to import, remove it")


def _packages() -> None:
    for name in ("transformers", "mujoco-core", "tensordict", "hydra-core"):
        _line(name, importlib.metadata.version(name))
    for extra, (package, purpose) in EXTRAS.items():
        _optional(package, f"{purpose}: {shlex.quote(sys.executable)} -m {install_command(extra)}")
    _optional("flash-attn", "faster attention on a GPU; not needed, PyTorch's own is used without it")


def _optional(name: str, purpose: str) -> None:
    try:
        _line(name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        _line(name, f"not installed; would enable {purpose}")


def _rendering() -> bool:
    from regrasp.envs.mujoco.backend import PACKAGES, probe, working_backend

    backend = working_backend()
    if backend is not None:
        _line("rendering", f"{backend} works")
        return True
    for name in ("egl", "osmesa"):
        _line("rendering", f"{name} fails: {probe(name)}")
    _line("", f"on Debian or Ubuntu: sudo apt-get install {' '.join(PACKAGES)}")
    return False
