"""Networks of other people's: traced, normalised, and put together again of blocks and taps."""
