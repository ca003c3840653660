"""The papers' tables: one file each, a function from a section of runs to its tables."""
