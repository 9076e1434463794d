"""Mergeable metric states: `empty`, `update`, `merge`, `compute`."""
