"""Where the time of a GR00T N1.5 goes on a GPU: kernels by kind, the largest of them, and gaps between them.

    python benchmarks/groot_gpu_profile.py [--trainable head_without_context] [--eager]     of an update
    python benchmarks/groot_gpu_profile.py --acts     of a decision of 64 environments
    python benchmarks/groot_gpu_profile.py --tiny     the same code with a tiny network, in seconds on a CPU

The update is that of `groot_gpu.py` with cached features, per minibatch of 32. The profiler slows the host, not the
kernels: the gaps are those of the same work without it.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from groot_gpu import Sizes, made_decision, made_update, sizes_of, timed

KINDS = (
    ("matrix products", ("nvjet", "cutlass", "cublas", "gemm", "gemv", "aten::mm", "aten::addmm", "aten::bmm")),
    ("attention", ("cudnn", "flash", "fmha", "attention")),
    ("optimizer and clipping", ("adamw_kernel", "FusedAdam", "LpNorm", "aten::_foreach", "aten::_fused_adam")),
    ("copies and fills", ("Memcpy", "Memset", "Copy", "Fill", "copy_kernel", "aten::copy_", "aten::fill_")),
    ("compiled, other", ("triton",)),
)
"""A kernel is of the first kind that has a part of its name."""


def kind_of(kernel: str) -> str:
    """What a kernel does, by its name."""
    return next((kind for kind, parts in KINDS if any(part in kernel for part in parts)), "other")


def kernels(work: Callable[[], Any], sizes: Sizes) -> list[tuple[str, float, int]]:
    """Name, milliseconds and launches of every kernel (on a CPU: operator) of some work, the longest first."""
    on_gpu = sizes.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        work()
        if on_gpu:
            torch.cuda.synchronize()
    found = [
        (event.key, (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e3, event.count)
        for event in profiler.key_averages()
    ]
    return sorted((row for row in found if row[1] > 0), key=lambda row: -row[1])


def main(arguments: Sequence[str] | None = None) -> None:
    """Profile and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trainable", choices=("head", "head_without_context"), default="head")
    parser.add_argument("--acts", action="store_true", help="a decision of 64 environments, and no update")
    parser.add_argument("--eager", action="store_true", help="nothing compiled")
    parser.add_argument("--tiny", action="store_true", help="a tiny network on the CPU; the numbers mean nothing")
    parser.add_argument("--largest", type=int, default=30, help="kernels to list")
    options = parser.parse_args(arguments)
    sizes = sizes_of(tiny=options.tiny)
    if options.acts:
        work, count = made_decision(sizes, compiled=not options.eager), 1
    else:
        work, count = made_update(sizes, trainable=options.trainable, compiled=not options.eager)
    whole = statistics.median(timed(work, sizes.device, 5, warm_up=2)) / count
    rows = kernels(work, sizes)
    by_kind: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for kernel, milliseconds, launches in rows:
        by_kind[kind_of(kernel)][0] += milliseconds / count
        by_kind[kind_of(kernel)][1] += launches / count
    busy = sum(milliseconds for milliseconds, _ in by_kind.values())
    print(f"{'a decision' if options.acts else 'a minibatch':24}{whole:10.2f} ms")
    for kind, (milliseconds, launches) in sorted(by_kind.items(), key=lambda item: -item[1][0]):
        print(f"{kind:24}{milliseconds:10.2f} ms{launches:8.0f} kernels")
    print(f"{'gaps between kernels':24}{whole - busy:10.2f} ms\n")
    for kernel, milliseconds, launches in rows[: options.largest]:
        print(f"{milliseconds / count:10.3f} ms{launches / count:8.1f}  {kernel[:120]}")


if __name__ == "__main__":
    main()
