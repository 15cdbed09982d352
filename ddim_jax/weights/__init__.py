"""Weights that other projects published, and ours for them: files, names, layouts and what they say of themselves.

- ``forms``: reads weights in whatever form they come; the others are its parts.
- ``torch_file``: PyTorch's files, read without PyTorch and without running anything from them.
- ``array_files``: ``.npz`` and ``.safetensors``.
- ``diffusers_folder``, ``diffusers_config``: folders of diffusers, and what their settings mean here.
- ``unet_names``: what others call the U-Net's parameters, and how they lay them out.
- ``shapes``: the arrays that a network needs.
- ``agreement``: what a file states, against the config.
- ``published``: the published networks whose files state nothing.
- ``description``: what our own exported files state.
- ``inception``: the Inception network that FID and Inception Score are defined by.
"""
