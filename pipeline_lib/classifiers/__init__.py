"""Classifiers on frozen image features: the head, its losses and how it is tuned.

Nothing is imported here, so that reading a head does not load torch.
"""
