# MuJoCo's native modules have no stubs: everything in the package is Any.
from typing import Any

def __getattr__(name: str) -> Any: ...
