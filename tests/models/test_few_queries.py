"""Attention of few queries and the product of keys and values, against torch's own in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from regrasp.models.groot.kernels import few_queries
from regrasp.models.groot.kernels.few_queries import KeysValues, PackedGradient, attend, keys_values

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
BATCH, NUM_KEYS, HEADS, HEAD_DIM, LAYERS, CONTEXT_WIDTH = 3, 70, 2, 24, 3, 40
WIDTH = HEADS * HEAD_DIM


def heads(x: Tensor, num_heads: int = HEADS) -> Tensor:
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def relative_error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


def product_inputs(device: str, dtype: torch.dtype) -> list[Tensor]:
    """Context, weight, bias and queries of every layer."""
    generator = torch.Generator().manual_seed(0)
    shapes = (
        (BATCH, NUM_KEYS, CONTEXT_WIDTH),
        (2 * LAYERS * WIDTH, CONTEXT_WIDTH),
        (2 * LAYERS * WIDTH,),
        (LAYERS, BATCH, 9, WIDTH),
    )
    scales = (1, CONTEXT_WIDTH**-0.5, 1, 1)
    made = [scale * torch.randn(shape, generator=generator) for shape, scale in zip(shapes, scales, strict=True)]
    return [tensor.to(device, dtype).requires_grad_() for tensor in made]


def gradients(inputs: list[Tensor], how: str) -> tuple[Tensor, ...]:
    context, weight, bias, queries = inputs
    layers = keys_values(context, weight, bias, HEADS, LAYERS)
    if how == "rows":
        layers = [layer.rows(torch.tensor([2, 0, 0, 1], device=context.device)) for layer in layers]
        queries = queries[:, [0, 1, 2, 2]]
    uses = [0, 1, 2, 1, 1] if how == "several times" else [2, 0] if how == "not all" else [0, 1, 2]
    total = torch.stack([attend(heads(queries[i]), layers[i]).float().sin().sum() for i in uses]).sum()
    return torch.autograd.grad(total, inputs)


@needs_gpu
@pytest.mark.parametrize("how", ["once", "several times", "not all", "rows"])
def test_gradients_of_a_product_of_keys_and_values(how: str) -> None:
    inputs = product_inputs("cuda", torch.bfloat16)
    expected = gradients([tensor.detach().float().requires_grad_() for tensor in inputs], how)
    for found, wanted in zip(gradients(inputs, how), expected, strict=True):
        assert relative_error(found, wanted) < 0.01


@pytest.mark.parametrize("how", ["once", "several times", "not all", "rows"])
def test_gradients_are_put_together_however_layers_are_used(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With float32 gradients by torch's own attention, written where the kernel would write them."""
    inputs = product_inputs("cpu", torch.float32)
    expected = gradients(inputs, how)
    monkeypatch.setattr(few_queries, "_computes", lambda x: True)
    monkeypatch.setattr(few_queries, "attention", lambda q, k, v: (F.scaled_dot_product_attention(q, k, v), q))
    monkeypatch.setattr(few_queries, "attention_gradient", gradient_by_torch)
    for found, wanted in zip(gradients(inputs, how), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def gradient_by_torch(*arguments: Any) -> tuple[Tensor, ...]:
    queries, keys, values, _, _, upstream, room = arguments
    own = [tensor.detach().requires_grad_() for tensor in (queries, keys, values)]
    with torch.enable_grad():
        result = F.scaled_dot_product_attention(own[0], own[1], own[2])
    of_queries, *rest = torch.autograd.grad(result, own, upstream)
    taken = None if room is None else room.take(keys)
    if taken is None:
        return of_queries, *rest
    for target, gradient in zip(taken, (*rest, *(part.sum(2) for part in rest)), strict=True):
        target.copy_(gradient)
    return of_queries, *taken[:2]


def test_what_is_written_side_by_side_is_not_copied() -> None:
    packed, keys = PackedGradient(2), torch.randn(BATCH, HEADS, NUM_KEYS, HEAD_DIM)
    parts: list[Tensor] = []
    for layer in (1, 0):
        taken = packed.take(layer, keys)
        assert taken is not None
        for number, part in enumerate(taken):
            part.fill_(10 * layer + number)
        parts = [*(part.transpose(1, 2).flatten(2) for part in taken[:2]), *parts]
    whole, sums = packed.finish(tuple(parts))
    assert whole.data_ptr() == parts[0].data_ptr()
    assert whole.shape == (BATCH, NUM_KEYS, 4 * WIDTH)
    for number, part in enumerate(whole.chunk(4, dim=-1)):
        assert (part == (0, 1, 10, 11)[number]).all()
    assert sums.tolist() == [BATCH * number for number in (2.0, 3.0, 12.0, 13.0) for _ in range(WIDTH)]


@needs_gpu
@pytest.mark.parametrize(
    ("batch", "num_heads", "num_queries", "num_keys", "head_dim"),
    [(4, 32, 49, 850, 48), (3, 2, 1, 7, 64), (2, 2, 64, 64, 16), (1, 3, 33, 130, 40), (2, 2, 5, 5, 8)],
)
def test_attention_equals_torchs(batch: int, num_heads: int, num_queries: int, num_keys: int, head_dim: int) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    width = num_heads * head_dim
    packed = torch.randn(batch, num_keys, 4 * width, generator=generator, device="cuda", dtype=torch.bfloat16)
    queries = torch.randn(batch, num_queries, width, generator=generator, device="cuda", dtype=torch.bfloat16)
    given = [heads(x, num_heads).requires_grad_() for x in (queries, *packed.chunk(4, dim=-1)[1:3])]
    exact = [tensor.detach().float().requires_grad_() for tensor in given]
    wanted = F.scaled_dot_product_attention(exact[0], exact[1], exact[2])
    upstream = torch.randn(given[0].shape, generator=generator, device="cuda", dtype=torch.bfloat16)
    found = attend(given[0], KeysValues(given[1], given[2]))
    assert "_Attention" in type(found.grad_fn).__name__
    assert relative_error(found, wanted) < 0.005
    of_found = torch.autograd.grad(found, given, upstream)
    for gradient, expected in zip(of_found, torch.autograd.grad(wanted, exact, upstream.float()), strict=True):
        assert relative_error(gradient, expected) < 0.01


@needs_gpu
def test_torchs_attention_takes_what_the_kernels_are_not_for() -> None:
    """Many queries, and float32."""
    many = torch.randn(1, 2, 65, 16, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    few = many[:, :, :4]
    for queries, others in ((many, many), (few.float(), many.float())):
        assert "_Attention" not in type(attend(queries, KeysValues(others, others)).grad_fn).__name__
