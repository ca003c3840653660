"""Quantizers: parameters plus a pure function each, and the layers that use them."""
