"""Where Omniverse Kit is not installed, lets the real `isaaclab` wheel be imported without it.

Python imports this module at start when its folder is on PYTHONPATH. Whatever Kit and USD would offer becomes an
object that accepts every call and does nothing; the wheel's own packages are put on the path, which Kit would do.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
import tempfile
import types
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGES = ("carb", "isaacsim", "nvidia_srl", "omni", "pxr", "Semantics", "usdrt")
ACCESSORIES = ("cv2", "flatdict", "hid", "matplotlib", "onnx", "pyglet", "starlette", "torchvision", "trimesh", "warp")


class Anything(type):
    """A class with every attribute, which can be called, iterated and used in annotations."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = make(name)
        setattr(cls, name, value)
        return value

    def __or__(cls, other: Any) -> Any:
        return cls

    def __ror__(cls, other: Any) -> Any:
        return cls

    def __iter__(cls) -> Any:
        return iter(())

    def __int__(cls) -> int:
        return 0


def make(name: str) -> Any:
    def get(self: Any, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return make(attribute)

    members = {
        "__init__": lambda self, *args, **kwargs: None,
        "__call__": lambda self, *args, **kwargs: make("result")(),
        "__getattr__": get,
        "__int__": lambda self: 0,
    }
    return Anything(name, (), members)


class Stub(types.ModuleType):
    """A module with every attribute and every submodule."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__file__":
            raise AttributeError(name)
        if name == "__file__":
            return __file__
        value = sys.modules.get(f"{self.__name__}.{name}") or make(name)
        setattr(self, name, value)
        return value


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a stub for each module of the missing packages."""

    def __init__(self, names: set[str]) -> None:
        self.names = names

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname.split(".")[0] in self.names:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        module = Stub(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def install() -> None:
    wheel = find_spec("isaaclab")
    if wheel is None or wheel.origin is None or find_spec("isaacsim") is not None:
        return
    sources = Path(wheel.origin).parent / "source"
    sys.path[:0] = [str(folder) for folder in sources.iterdir() if folder.is_dir()]
    missing = {name for name in (*PACKAGES, *ACCESSORIES) if find_spec(name) is None}
    sys.meta_path.append(Finder(missing))
    os.environ["EXP_PATH"] = tempfile.gettempdir()


install()
