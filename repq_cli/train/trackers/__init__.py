"""Where the numbers of a run go beside its own ``metrics.jsonl``: a file for each program that shows them."""
