"""How a network is written as ONNX. Imports nothing that needs an extra."""

from __future__ import annotations

from typing import NamedTuple

from repq_cli.errors import ConfigError

OPSETS = PLAIN, WITH_INT4 = 17, 21  # the second is the first that has integers of 4 bits


class Form(NamedTuple):
    """What of a file is a matter of choice; none of it is one of the network's answers.

    float_biases  add biases behind the sums instead, unrounded, which runtimes do in floating point: exact and slow
    reduce_range  weight codes from -64 to 64, for processors whose products saturate; those of 8 bits lose one
    int4          weights of 4 bits and fewer as INT4, which runtimes make int8 of once, when they load them
    symmetric     activations int8 without zero-points, as TensorRT reads them: activation functions are nodes, biases
                  numbers in the convolution
    opset         one of ``OPSETS``
    """

    float_biases: bool = False
    reduce_range: bool = False
    int4: bool = False
    symmetric: bool = False
    opset: int = PLAIN

    @classmethod
    def of(
        cls, biases: str, *, reduce_range: bool = False, weights: str = "int8", zero_points: str = "auto",
        opset: int | None = None,
    ) -> Form:  # fmt: skip
        """As the keys of ``repq export`` say it; the least opset where none is asked for.

        Raises ConfigError for an opset without integers of 4 bits where weights have them.
        """
        int4 = weights == "int4"
        if int4 and opset is not None and opset < WITH_INT4:
            raise ConfigError(f"weights=int4 and opset={opset}: ONNX has INT4 from opset {WITH_INT4} on; leave it out.")
        least = WITH_INT4 if int4 else PLAIN
        return cls(biases == "float", reduce_range, int4, zero_points == "none", opset or least)


USUAL = Form()
