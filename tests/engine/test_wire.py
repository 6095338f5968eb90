"""What goes between processes as arrays comes out as it went in."""

from __future__ import annotations

import pickle

import pytest
import torch

from regrasp.engine.ray.wire import HostMemory, pack_tree, unpack_tree


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_a_tree_of_tensors_comes_out_the_same_and_is_its_own() -> None:
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    tree = {
        "weights": {"a": weight, "half": weight.t().to(torch.bfloat16)},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0), "exp_avg": weight * 2}}, "lr": [1e-3, 2]},
        "counts": (torch.arange(3), True),
        "kind": "cosine",
        "none": None,
    }
    buffers: list[pickle.PickleBuffer] = []
    sent = pickle.dumps(pack_tree(tree, HostMemory()), protocol=5, buffer_callback=buffers.append)
    assert len(sent) < 2000, "the numbers go beside it, without a copy"
    read_only = [memoryview(bytes(buffer.raw())) for buffer in buffers]
    found = unpack_tree(pickle.loads(sent, buffers=read_only))
    assert found["kind"] == "cosine"
    assert found["none"] is None
    del tree["kind"], tree["none"], found["kind"], found["none"]
    torch.testing.assert_close(found, tree, rtol=0, atol=0)
    found["weights"]["a"].add_(1.0)
    found["optimizer"]["state"][0]["exp_avg"].zero_()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_copies_of_a_gpu_have_the_same_memory_each_time() -> None:
    memory = HostMemory()
    first = memory.copied(0, torch.ones(5, device="cuda"))
    place = first.data_ptr()
    second = memory.copied(0, torch.full((5,), 2.0, device="cuda"))
    assert second.data_ptr() == place
    assert second.tolist() == [2.0] * 5
    assert memory.copied(0, torch.ones(6, device="cuda")).shape == (6,)
