"""Every operation of deployed networks: trained, deployed, integers and ONNX are one."""

from __future__ import annotations

import random

import pytest
import torch
from operations import Parts, conv, differences

from repq_cli.quant.lsq import LSQ


def test_convolutions_of_any_window(subtests: pytest.Subtests) -> None:
    """Of their own for rows and columns: stride, padding, dilation, kernel; padding of every side; transposed."""
    random.seed(0)
    torch.manual_seed(0)
    for number in range(10):
        groups, outputs = random.choice([(1, 6), (2, 6), (4, 4)])
        size, dilation, stride = ((random.randint(1, 3), random.randint(1, 3)) for _ in range(3))
        window = {"stride": stride, "dilation": dilation, "groups": groups}
        if number % 2:
            window |= {"padding": (random.randint(0, 1), random.randint(0, 2))}
            more = [random.randrange(max(pair)) for pair in zip(stride, dilation, strict=True)]
            window |= {"output_padding": tuple(more)}
        else:
            window |= {"padding": tuple(random.randint(0, 2) for _ in range(random.choice((2, 4))))}
        with subtests.test(size=size, **window):
            net = Parts(
                lambda net, x: net.after(net.conv(net.before(x))),
                before=LSQ(8, True),
                conv=conv(4, outputs, size, **window),
                after=LSQ(8, True),
            )
            integers, others, onnx = differences(net, torch.randn(2, 4, 9, 8))
            print(integers, others, onnx, window)
            assert integers <= 1 and others <= 1 and onnx <= 1.001
