"""Tasks: the loss, the metric, and which of two results is better."""
