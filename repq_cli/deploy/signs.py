"""Where signs are taken of sums of codes: there an integer decides, and no rounding may."""

from __future__ import annotations

from repq_cli.deploy.network import DeployedNet


def sums_before_signs(net: DeployedNet) -> set[str]:
    """The layers that sum codes, and whose outputs reach a quantizer by sign before any other quantizer or layer."""
    reaches: set[str] = set()
    for node in reversed(net.nodes):
        quantizer = net.quantizers.get(node["name"])
        if quantizer["by_sign"] if quantizer else "weight" not in node and node["name"] in reaches:
            reaches |= set(node["inputs"])
    return reaches & net.on_codes
