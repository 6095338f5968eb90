"""What a data configuration class of Isaac-GR00T says, read from its source: nothing of it is run or imported.

Such a class lists its keys as class attributes, and says in `transform` how they are normalised:

    class MyDataConfig(BaseDataConfig):
        video_keys = ["video.front"]
        state_keys = ["state.arm"]
        action_keys = ["action.arm"]
        language_keys = ["annotation.human.task_description"]

        def transform(self):
            return ComposedModalityTransform(transforms=[
                VideoCrop(apply_to=self.video_keys, scale=0.95),
                StateActionSinCosTransform(apply_to=self.state_keys),
                StateActionTransform(apply_to=self.action_keys,
                                     normalization_modes={key: "min_max" for key in self.action_keys}),
            ])
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

Names = dict[str, Any]


class UnreadableError(Exception):
    """The class is not found, or says something that is known only by running it; the message says what."""


def read_class(
    place: str, folders: Sequence[Path], published: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
) -> dict[str, Any]:
    """A data configuration as a mapping, from the source of its class.

    Args:
        place: `module:Class`.
        folders: Where the module may be, in this order.
        published: What classes of other modules, that it may extend, say; by class name.

    Raises:
        UnreadableError: There is no such class, or it cannot be read without running it.
    """
    module, _, name = place.rpartition(":")
    file = next((path for folder in folders for path in _candidates(folder, module) if _is_file(path)), None)
    if file is None:
        raise UnreadableError(f"no {module.replace('.', '/')}.py is beside the experiment, here or on the Python path")
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, OSError) as error:
        raise UnreadableError(f"{file} cannot be parsed: {error}") from error
    try:
        return _Module(tree, file, published).data_config(name)
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        # The source is a stranger's: a list in place of a dictionary shows itself only here.
        raise UnreadableError(f"{name} in {file} is not as Isaac-GR00T has it: {error}") from error


def _candidates(folder: Path, module: str) -> Iterator[Path]:
    path = folder.joinpath(*module.split("."))
    yield path.with_suffix(".py")
    yield path / "__init__.py"


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        # A folder of the Python path that may not be entered holds nothing, as for Python itself.
        return False


class _Module:
    """A parsed module: its constants and its classes."""

    def __init__(self, tree: ast.Module, file: Path, published: Mapping[str, Mapping[str, Any]]) -> None:
        self._file = file
        self._published = published
        self._classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        self._constants = _assigned(tree.body, {})

    def data_config(self, name: str) -> dict[str, Any]:
        """What a class says, and what those say that it extends."""
        lineage = list(self._lineage(name))
        bases = [base.id for base in lineage[-1].bases if isinstance(base, ast.Name)]
        base = next((self._published[known] for known in bases if known in self._published), None)
        own = {} if base is None else _attributes(base)
        for node in reversed(lineage):
            own |= _assigned(node.body, {**self._constants, **own})
        if len(_readable(own.get("observation_indices", [0]))) != 1:
            raise UnreadableError(f"{name} takes several time steps of the observation, which is not supported")
        methods = {m.name: m for node in reversed(lineage) for m in node.body if isinstance(m, ast.FunctionDef)}
        if "transform" in methods:
            return _described(_Transforms(methods["transform"], self._constants, own), own, name)
        if base is None:
            raise UnreadableError(f"{name} in {self._file} has no method `transform`")
        return _extended(base, own, name)

    def _lineage(self, name: str) -> Iterator[ast.ClassDef]:
        """The class and its base classes in this module, the nearest first."""
        seen: set[str] = set()
        node = self._classes.get(name)
        if node is None:
            raise UnreadableError(f"{self._file} has no class {name}")
        while node is not None and node.name not in seen:
            seen.add(node.name)
            yield node
            node = next(
                (self._classes[b.id] for b in node.bases if isinstance(b, ast.Name) and b.id in self._classes), None
            )


class _Transforms:
    """The calls in a `transform` method, and what their arguments are."""

    def __init__(self, method: ast.FunctionDef, constants: Names, own: Names) -> None:
        self._names = {**constants, "self": own}
        self._names |= _assigned(method.body, self._names)
        calls = [node for node in ast.walk(method) if isinstance(node, ast.Call)]
        self._calls = [(_called(node), node) for node in calls]

    def of(self, name: str) -> Iterator[Names]:
        """Keyword arguments of each call of a transform that can be read."""
        for called, node in self._calls:
            if called == name:
                yield {
                    word.arg: _value(word.value, self._names)
                    for word in node.keywords
                    if word.arg is not None and word.arg in _ARGUMENTS
                }


_ARGUMENTS = (
    "apply_to",
    "normalization_modes",
    "target_rotations",
    "scale",
    "video_concat_order",
    "state_concat_order",
    "action_concat_order",
)


def _described(transforms: _Transforms, own: Names, name: str) -> dict[str, Any]:
    modes: Names = {}
    rotations: Names = {}
    for call in transforms.of("StateActionSinCosTransform"):
        modes |= dict.fromkeys(call.get("apply_to", ()), "sin_cos")
    for call in transforms.of("StateActionTransform"):
        modes |= call.get("normalization_modes", {})
        rotations |= call.get("target_rotations", {})
    order: Names = {}
    for call in transforms.of("ConcatTransform"):
        order |= call

    def keys(kind: str) -> list[str]:
        found = _readable(order.get(f"{kind}_concat_order", own.get(f"{kind}_keys")))
        if not isinstance(found, list) or not found:
            raise UnreadableError(f"{name} has no list `{kind}_keys`")
        return [str(key) for key in found]

    def parts(kind: str) -> list[dict[str, Any]]:
        return [
            {"key": key, "mode": modes.get(key, "none")} | ({"rotation": rotations[key]} if key in rotations else {})
            for key in keys(kind)
        ]

    crops = [call["scale"] for call in transforms.of("VideoCrop") if "scale" in call]
    language = _readable(own.get("language_keys"))
    return {
        "video": keys("video"),
        "state": parts("state"),
        "action": parts("action"),
        "crop_scale": crops[0] if crops else 1.0,
        **({"language": language[0]} if language else {}),
    }


def _attributes(published: Mapping[str, Any]) -> Names:
    """The class attributes of a published class."""
    return {
        "video_keys": [f"video.{key}" for key in published["video"]],
        **{f"{kind}_keys": [f"{kind}.{item['key']}" for item in published[kind]] for kind in ("state", "action")},
        "language_keys": [published["language"]],
    }


def _extended(base: Mapping[str, Any], own: Names, name: str) -> dict[str, Any]:
    """A published class with other keys, which it scales as it scales its own."""

    def parts(kind: str) -> list[dict[str, Any]]:
        keys = _readable(own[f"{kind}_keys"])
        known = {f"{kind}.{item['key']}": item for item in base[kind]}
        modes = {item["mode"] for item in base[kind]}
        if new := [key for key in keys if key not in known]:
            if len(modes) > 1:
                raise UnreadableError(f"how {name} scales {', '.join(new)} is not said")
            known |= {key: {"key": key, "mode": next(iter(modes))} for key in new}
        return [known[key] for key in keys]

    video, language = _readable(own["video_keys"]), _readable(own["language_keys"])
    return {**base, "video": video, "state": parts("state"), "action": parts("action"), "language": language[0]}


def _called(node: ast.Call) -> str:
    """The last part of what is called."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _assigned(body: Sequence[ast.stmt], outer: Mapping[str, Any]) -> Names:
    """Names that simple statements give a value; where it cannot be read, the reason stands in its place."""
    names: Names = {}
    for statement in body:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        targets = [statement.target] if isinstance(statement, ast.AnnAssign) else targets
        value = statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None
        if value is None:
            continue
        try:
            read = _value(value, {**outer, **names})
        except UnreadableError as error:
            read = error
        names |= {target.id: read for target in targets if isinstance(target, ast.Name)}
    return names


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """The value of an expression of constants, names, lists, dictionaries and comprehensions over them.

    Raises:
        UnreadableError: It is another expression.
    """
    match node:
        case ast.Constant():
            return node.value
        case ast.Name() if node.id in names:
            return _readable(names[node.id])
        case ast.Attribute(value=ast.Name(id="self")) if node.attr in names.get("self", {}):
            return _readable(names["self"][node.attr])
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.List() | ast.Tuple():
            return [item for element in node.elts for item in _items(element, names)]
        case ast.Dict():
            return _dictionary(node, names)
        case ast.BinOp(op=ast.Add()):
            left, right = _value(node.left, names), _value(node.right, names)
            if type(left) is type(right) and isinstance(left, list | str):
                return left + right
        case ast.ListComp():
            return [_value(node.elt, inner) for inner in _iterations(node.generators, names)]
        case ast.DictComp():
            inners = _iterations(node.generators, names)
            return {_value(node.key, inner): _value(node.value, inner) for inner in inners}
    raise UnreadableError(f"line {node.lineno}, `{ast.unparse(node)}`, is known only by running it")


def _readable(value: Any) -> Any:
    if isinstance(value, UnreadableError):
        raise value
    return value


def _items(node: ast.expr, names: Mapping[str, Any]) -> list[Any]:
    """What an element adds to a list: itself, or what is unpacked."""
    return list(_value(node.value, names)) if isinstance(node, ast.Starred) else [_value(node, names)]


def _dictionary(node: ast.Dict, names: Mapping[str, Any]) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for key, value in zip(node.keys, node.values, strict=True):
        read = _value(value, names)
        result |= read if key is None else {_value(key, names): read}
    return result


def _iterations(generators: Sequence[ast.comprehension], names: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The names inside a comprehension, for each of its iterations."""
    (generator, *others) = generators
    if others or generator.ifs or not isinstance(generator.target, ast.Name):
        raise UnreadableError(f"line {generator.target.lineno} is a comprehension that is known only by running it")
    return [{**names, generator.target.id: item} for item in _value(generator.iter, names)]
