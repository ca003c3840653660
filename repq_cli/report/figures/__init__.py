"""Figures made of rows, logs and measurements; matplotlib is imported by what draws, not by these modules."""
