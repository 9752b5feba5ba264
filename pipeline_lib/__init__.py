"""Synthetic images for image recognition, from prompts to tables."""

__version__ = "0.1.0"
