"""The deployed network: integer codes, steps and biases in files, run without the training classes."""
