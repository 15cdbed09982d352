"""Weights that other projects published: reading their files, and turning them into our parameters.

- ``torch_file``: PyTorch's files, read without PyTorch and without running anything from them.
- ``inception``: the Inception network that FID and Inception Score are defined by.
"""
