"""C++ gets the address of a tensor only if the tensor is what C++ takes it for."""

import pytest
import torch

from goldfinch.cpu.pointers import UnfitTensorError, pointer


def test_the_address_is_that_of_the_data():
    tensor = torch.ones(2, 3)
    assert pointer(tensor, (2, 3), torch.float32).value == tensor.data_ptr()
    assert pointer(None, (2, 3), torch.float32).value is None
    every_second_row = torch.ones(4, 3)[::2]
    assert pointer(every_second_row, (2, 3), torch.float32, strided=True).value == every_second_row.data_ptr()


@pytest.mark.parametrize(
    ("tensor", "strided"),
    [
        (torch.ones(2, 3, dtype=torch.bfloat16), False),
        (torch.ones(3, 2), False),
        (torch.ones(3, 2).T, False),
        (torch.ones(3, 2).T, True),
        (torch.ones(2, 3, device="meta"), False),
    ],
    ids=["dtype", "shape", "strides", "strides of the last dimension", "device"],
)
def test_another_tensor_is_refused(tensor, strided):
    with pytest.raises(UnfitTensorError, match=r"must be torch.float32 \(2, 3\) on cpu, contiguous"):
        pointer(tensor, (2, 3), torch.float32, strided=strided)
