"""Rows of runs, and what is made of them. Imports neither Hydra nor the training code."""
