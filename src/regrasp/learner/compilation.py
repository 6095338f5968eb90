"""Compiled policies and losses: torch.compile, fixed batch shapes, and CUDA graphs for acting."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch._dynamo.config as dynamo_config
from tensordict import TensorDict
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch._dynamo.utils import counters

from regrasp.errors import UserError
from regrasp.learner.learner import Backward, Learner
from regrasp.models.contract import Action, Evaluation, Noise, Policy
from regrasp.rollout.decisions import Decisions

_WARM_UP = 2
"""Runs before a capture: the first ones compile, tune and allocate."""
_VARIANTS = 8
"""Ways in which a kind of layer is called with one number of rows: with gradients and without, of whole sequences, of
one more position, of the positions that are read."""
_INDUCTOR: dict[str, str | int | bool | Callable[..., Any]] = {"comprehensive_padding": False}
"""Of torch.compile. Else the rows of SigLIP's 4,304 numbers are padded, and the product that reads them no longer adds
its bias: that is copied before, for 0.36 of 3.7 ms that a layer takes of 192 images on one H200."""
_OTHERS_GO_ON = "thread_local"
"""While a graph is recorded, another thread may use the GPU: the weights are copied beside a rollout."""
_FIX = "set actor.model.compile=false"


def compile_policy(
    policy: Policy,
    batch_sizes: Collection[int],
    device: torch.device,
    *,
    parts: Mapping[str, int] | None = None,
    backend: str | Callable[..., Any] = "inductor",
) -> None:
    """Compile the policy's `methods_to_compile`, in place, for the given batch sizes.

    Layers of one class share their code, so that compiling takes seconds and not minutes. Shapes are static, and on a
    GPU there are CUDA graphs, see `capture_policy`.

    What is compiled without gradients rounds bfloat16 in other places than what is compiled with them, and a product
    of other shape may. So a policy that acts for an update acts as it learns, on parts of the update's size.

    Args:
        policy: Its methods are compiled when they are first used, with and without gradients.
        batch_sizes: Numbers of rows; each one compiles them once.
        device: Where the policy lives.
        parts: For a policy that acts for an update: the rows that the update evaluates at a time, for `act` and for
            `encode`, if it encodes again. A larger batch is divided into parts of so many.
        backend: Of torch.compile; `eager` only traces.

    Raises:
        UserError: The policy has nothing to compile. Later, in a call: compiling failed.
    """
    methods = policy.methods_to_compile()
    if not methods:
        raise UserError(
            "This policy has nothing to compile", key="actor.model.compile", value=True, expected="false", fix=_FIX
        )
    # What layers of one class share their code are compiled into counts as its recompilations, all of them meant.
    dynamo_config.recompile_limit = max(dynamo_config.recompile_limit, _VARIANTS * len(batch_sizes))
    options = _INDUCTOR if backend == "inductor" else None
    for module, name in methods:
        compiled = torch.compile(getattr(module, name), fullgraph=True, dynamic=False, backend=backend, options=options)
        setattr(module, name, compiled)
    policy.acts_as_it_learns = parts is not None
    capture_policy(policy, batch_sizes, device, parts=parts)


def capture_policy(
    policy: Policy, batch_sizes: Collection[int], device: torch.device, *, parts: Mapping[str, int] | None = None
) -> None:
    """On a GPU, replay the policy's `capturable` methods as CUDA graphs where nothing is differentiated.

    A batch of another size than those given is filled up with copies of its first row, and the rows added are cut off
    the results.

    Args:
        policy: Its methods are replaced, in place.
        batch_sizes: Numbers of rows; each one is recorded once.
        device: Where the policy lives.
        parts: See `compile_policy`.
    """
    if device.type == "cuda":
        pool = torch.cuda.graph_pool_handle()
        for name in policy.capturable:
            setattr(policy, name, CapturedMethod(getattr(policy, name), pool))
    _fix_batch_sizes(policy, sorted(batch_sizes), parts or {})


def capture_updates(
    learner: Learner, size: int, *, compiles: bool = True, backend: str | Callable[..., Any] = "inductor"
) -> None:
    """Replay a learner's passes over micro-batches of `size` on a GPU as CUDA graphs.

    Rollouts are of different lengths, and so then are micro-batches. Smaller ones are filled up with decisions that
    count nowhere, where the algorithm has such; otherwise they are computed as before, and each size compiled anew.

    Args:
        learner: Its `backward` is replaced.
        size: Decisions of a micro-batch.
        compiles: Compile the losses, too.
        backend: Of torch.compile.
    """
    for name in learner.algorithm.compiled if compiles else ():
        compiled = torch.compile(getattr(learner.algorithm, name), fullgraph=True, dynamic=False, backend=backend)
        setattr(learner.algorithm, name, partial(_without_fallback, compiled))
    start = learner.algorithm.start
    policies = [learner.computing] if start is None else [learner.computing, start]
    captured = CapturedBackward(learner.backward, policies, learner.weights(), size)
    learner.backward = filled_up(captured, size) if learner.algorithm.passes_over_unexecuted else captured


def filled_up(backward: Backward, size: int) -> Backward:
    """A backward pass that always sees micro-batches of `size`, the added decisions with nothing executed."""

    def over(micro: Decisions, shares: Tensor, groups: tuple[str, ...]) -> dict[str, Tensor]:
        return backward(micro if len(micro) >= size else micro.filled(size), shares, groups)

    return over


def num_compilations() -> int:
    """Graphs that torch.compile has made in this process."""
    return counters["stats"]["unique_graphs"]


def _fix_batch_sizes(policy: Policy, sizes: list[int], parts: Mapping[str, int]) -> None:
    def in_parts(name: str, method: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        rows = _num_rows(arguments, named)
        assert rows <= sizes[-1], f"{rows} rows, compiled for {sizes}"
        most = min(parts.get(name, sizes[-1]), sizes[-1])
        if rows <= most:
            size = next((size for size in sizes if most > size >= rows), most)
            return in_size(size, method, *arguments, **named)
        results = []
        for start in range(0, rows, most):
            part = slice(start, min(start + most, rows))
            own = {key: _part(value, part) for key, value in named.items()}
            results.append(in_size(most, method, *(_part(value, part) for value in arguments), **own))
        return _joined(results)

    def in_size(size: int, method: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        rows = _num_rows(arguments, named)
        if rows < size:
            arguments = tuple(_filled(value, rows, size) for value in arguments)
            named = {name: _filled(value, rows, size) for name, value in named.items()}
        result = _without_fallback(method, *arguments, **named)
        return _cut(result, rows) if rows < size else result

    policy.wrap_methods(in_parts)


def _num_rows(arguments: Sequence[Any], named: Mapping[str, Any]) -> int:
    """B of a call."""
    return next(len(value) for value in (*arguments, *named.values()) if isinstance(value, TensorDict))


def _without_fallback(call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Run what is compiled when it is first used."""
    try:
        return call(*arguments, **named)
    except (TorchDynamoException, FailOnRecompileLimitHit) as error:
        raise UserError(
            f"torch.compile failed: {' '.join(str(error).split(chr(10))[:2])}",
            key="actor.model.compile",
            value=True,
            expected="layers that compile, and on a CPU a C++ compiler",
            fix=_FIX,
        ) from error


def _part(value: Any, part: slice) -> Any:
    """An input of a policy for some of its rows; what is no batch stays as it is."""
    if isinstance(value, TensorDict | Tensor):
        return value[part]
    return value.rows(part) if isinstance(value, Noise) else value


def _joined(results: Sequence[Any]) -> Any:
    """One result of a policy from those of parts of a batch."""
    first = results[0]
    if isinstance(first, Action):
        fields = {name: _joined([getattr(one, name) for one in results]) for name in vars(first)}
        return replace(first, **fields)
    return None if first is None else torch.cat([*results])


def _filled(value: Any, rows: int, size: int) -> Any:
    """An input of a policy with copies of its first row up to `size` rows; what is no batch stays as it is."""
    if isinstance(value, TensorDict | Tensor):
        index = torch.arange(size, device=value.device)
        return value[index.where(index < rows, 0)]
    return _FilledNoise(value, size - rows) if isinstance(value, Noise) else value


def _cut(result: Any, rows: int) -> Any:
    """The first `rows` of every tensor of a policy's result."""
    if isinstance(result, Action | Evaluation):
        return replace(result, **{name: _cut(value, rows) for name, value in vars(result).items()})
    return None if result is None else result[:rows]


@dataclass(frozen=True)
class _FilledNoise:
    """Noise of a batch whose first row is repeated at its end."""

    noise: Noise
    num_added: int

    def normal(self, name: str, *shape: int) -> Tensor:
        return self._filled(self.noise.normal(name, *shape))

    def integers(self, name: str, high: int) -> Tensor:
        return self._filled(self.noise.integers(name, high))

    def of_episode(self) -> _FilledNoise:
        return replace(self, noise=self.noise.of_episode())

    def rows(self, rows: slice) -> Noise:
        raise NotImplementedError("a batch is filled up after it was divided")

    def _filled(self, numbers: Tensor) -> Tensor:
        return torch.cat([numbers, numbers[:1].expand(self.num_added, *numbers.shape[1:])])


@dataclass
class _Capture:
    """One recorded call: where its inputs are read and its outputs written."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    outputs: tuple[Tensor, ...]
    returns_tuple: bool


class CapturedMethod:
    """A method of tensors and numbers that is recorded once for each set of shapes, and replayed.

    Replaying reads the weights where they are, so it sees what is written into them. Numbers (an annealed noise level)
    are recorded as scalars in float64, so that a call can have others. With gradients, and as a part of what is being
    recorded, the method itself is called.

    Args:
        method: From tensors, numbers and None to a tensor or a tuple of tensors, all on the GPU, for which it must not
            wait.
        pool: `torch.cuda.graph_pool_handle()` of graphs that never run at the same time, which share memory.
    """

    def __init__(self, method: Callable[..., Any], pool: Any) -> None:
        self._method = method
        self._pool = pool
        self._captures: dict[tuple[Any, ...], _Capture] = {}

    def __call__(self, *arguments: Any) -> Any:
        """Replay; the results are copies that the next call leaves alone."""
        if torch.is_grad_enabled() or torch.cuda.is_current_stream_capturing():
            return self._method(*arguments)
        given = [value for value in arguments if value is not None]
        shapes = tuple((v.shape, v.dtype) if isinstance(v, Tensor) else type(v) for v in arguments)
        if (capture := self._captures.get(shapes)) is None:
            capture = self._captures[shapes] = self._record(arguments)
        for own, value in zip(capture.inputs, given, strict=True):
            _write(own, value)
        capture.graph.replay()
        results = [output.clone() for output in capture.outputs]
        return tuple(results) if capture.returns_tuple else results[0]

    def _record(self, arguments: tuple[Any, ...]) -> _Capture:
        device = next(value.device for value in arguments if isinstance(value, Tensor))
        own = [None if value is None else _kept(value, device) for value in arguments]
        _warm_up(lambda: self._method(*own))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode=_OTHERS_GO_ON):
            outputs = self._method(*own)
        inputs = [value for value in own if value is not None]
        returns_tuple = isinstance(outputs, tuple)
        return _Capture(graph, inputs, outputs if returns_tuple else (outputs,), returns_tuple)


@dataclass
class _CapturedBackward:
    graph: torch.cuda.CUDAGraph
    schedules: list[tuple[Tensor, ...]]
    micro: Decisions
    shares: Tensor
    names: tuple[str, ...]
    metrics: Tensor
    gradients: list[Tensor | None]


class CapturedBackward:
    """Forward and backward pass of a micro-batch, recorded once as a CUDA graph and replayed.

    A step is hundreds of small kernels, which the GPU finishes faster than Python starts them. Micro-batches of
    another size than the recorded one are computed as before.

    Args:
        backward: Adds gradients and returns metrics; must not wait for the GPU.
        policies: What it computes with; the numbers of their `schedule` are scalars of the record.
        weights: Whose gradients it may add to. One that a pass does not reach has none after it.
        size: Decisions of a micro-batch to record.
    """

    def __init__(
        self, backward: Backward, policies: Sequence[Policy], weights: Sequence[nn.Parameter], size: int
    ) -> None:
        self._backward = backward
        self._policies = policies
        self._weights = weights
        self._size = size
        self._captures: dict[tuple[str, ...], _CapturedBackward] = {}

    def __call__(self, micro: Decisions, shares: Tensor, groups: tuple[str, ...]) -> dict[str, Tensor]:
        """Replay; metrics are copies that the next call leaves alone."""
        if len(micro) != self._size:
            return self._backward(micro, shares, groups)
        earlier = [weight.grad for weight in self._weights]
        if (capture := self._captures.get(groups)) is None:
            capture = self._captures[groups] = self._record(micro, shares, groups)
        kept = [None if gradient is None else gradient.clone() for gradient in earlier]
        capture.micro.copy_from(micro)
        capture.shares.copy_(shares)
        for policy, own in zip(self._policies, capture.schedules, strict=True):
            for scalar, number in zip(own, policy.schedule, strict=True):
                _write(scalar, number)
        capture.graph.replay()
        for weight, gradient, before in zip(self._weights, capture.gradients, kept, strict=True):
            weight.grad = before if gradient is None else gradient if before is None else gradient.add_(before)
        return dict(zip(capture.names, capture.metrics.clone().unbind(), strict=True))

    def _record(self, micro: Decisions, shares: Tensor, groups: tuple[str, ...]) -> _CapturedBackward:
        own = micro.clone()
        own_shares = shares.clone()
        numbers = [policy.schedule for policy in self._policies]
        schedules = [tuple(_kept(number, shares.device) for number in own) for own in numbers]

        def forget() -> None:
            for weight in self._weights:
                weight.grad = None

        def run() -> None:
            forget()
            self._backward(own, own_shares, groups)

        for policy, scalars in zip(self._policies, schedules, strict=True):
            policy.schedule = scalars
        _warm_up(run)
        forget()
        torch.cuda.empty_cache()  # what the warm-up held; the graph has memory of its own
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode=_OTHERS_GO_ON):
            metrics = self._backward(own, own_shares, groups)
            values = torch.stack([*metrics.values()])
        for policy, before in zip(self._policies, numbers, strict=True):
            policy.schedule = before
        gradients = [weight.grad for weight in self._weights]
        return _CapturedBackward(graph, schedules, own, own_shares, tuple(metrics), values, gradients)


def _kept(value: Tensor | float, device: torch.device) -> Tensor:
    """An input of a record, in memory of its own."""
    return value.clone() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64, device=device)


def _write(own: Tensor, value: Tensor | float) -> None:
    """Give an input of a record its present value."""
    if isinstance(value, Tensor):
        own.copy_(value)
    else:
        own.fill_(value)


def _warm_up(run: Callable[[], Any]) -> None:
    """Run before a capture, on a stream of its own, so that the capture meets nothing for the first time."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(stream)
