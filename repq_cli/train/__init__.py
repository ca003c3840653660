"""The two stages of training, their checkpoints and their logs."""
