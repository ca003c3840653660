"""Datasets: each gives training, validation and test splits and says what their images are."""
