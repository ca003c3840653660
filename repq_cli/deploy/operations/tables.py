"""Functions of codes, of which there are at most 256, as tables: exact."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from repq_cli.deploy.fixed_point import INT32_MAX
from repq_cli.deploy.integer_scales import Scaled, fine_scale
from repq_cli.deploy.operations.base import Constants, Node, Operation

if TYPE_CHECKING:
    from repq_cli.deploy.integer import IntegerNet


def of_codes(entry: Operation, node: Node, given: Scaled, net: IntegerNet) -> tuple[Constants, Scaled]:
    """A function of codes as a table of what each of them gives.

    Where only quantizers read it, codes go through, and a quantizer looks its own codes up: nothing is rounded twice.
    """
    reach = int(given.bound.max())
    step = given.scale.to(net.deployed.dtype)
    values = entry.compute(net.deployed, node, torch.arange(-reach, reach + 1).to(step.dtype) * step)
    if net.only_quantizers_read(node["name"]):
        return {}, Scaled(given.scale, given.bound, values=values)
    bound = max(values.abs().max().item(), 2.0**-60)
    scale = torch.tensor([fine_scale(bound, net.next_steps(node["name"]))], dtype=torch.float64)
    table = (values.double() / scale).round().clamp(-INT32_MAX, INT32_MAX).to(torch.int32)
    return {"codes": table}, Scaled(scale, (bound / scale).clamp(max=INT32_MAX))


def passed(constants: Constants, codes: Tensor) -> Tensor:
    """What ``of_codes`` has prepared, of codes: themselves, or what stands for each of them."""
    return looked_up(constants["codes"], codes) if "codes" in constants else codes


def looked_up(table: Tensor, codes: Tensor) -> Tensor:
    """What stands at each code of a table whose middle is code 0."""
    return table[codes.long() + len(table) // 2]
