"""repq: re-parameterised networks, trained so that they ship as low-bit integers."""

__version__ = "0.1.0"
