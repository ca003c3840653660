"""Pixels: colour spaces, bicubic resizing, image files."""
