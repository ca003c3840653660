"""What networks and kernels cost in time, measured side by side."""
