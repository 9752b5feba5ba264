"""Synthetic images for image recognition: prompts -> images -> scores -> manifest -> classifier -> metrics -> tables."""

__version__ = "0.1.0"
