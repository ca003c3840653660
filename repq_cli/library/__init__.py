"""What ``import repq_cli as repq`` offers to Python, loop and all in the reader's own hands."""
