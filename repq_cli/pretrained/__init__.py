"""Weights as the world saves them: from a file of anybody's to the tensors of one of our nets."""
