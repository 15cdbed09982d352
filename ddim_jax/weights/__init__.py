"""Weights that other projects published, and ours for them: files, names, layouts and what they say of themselves.

- ``forms``: reads weights in whatever form they come; most others are its parts.
- ``torch_file``: PyTorch's files, read without PyTorch.
- ``torch_pickle``: the programs in them, run without reaching anything of Python's.
- ``array_files``: ``.npz`` and ``.safetensors``.
- ``diffusers_folder``, ``diffusers_config``: folders of diffusers, and what their settings mean here.
- ``unet_names``: what others call the U-Net's parameters, and how they lay them out.
- ``song_names``: what EDM and score SDE call those of DDPM++ and NCSN++.
- ``edm_file``: EDM's networks; ``score_sde``: score SDE's, and what their outputs mean.
- ``shapes``: the arrays that a network needs.
- ``agreement``: what a file states, against the config.
- ``published_networks``: the networks whose published files state nothing.
- ``openai_names``, ``openai_networks``: the same for OpenAI's improved- and guided-diffusion.
- ``export_formats``: the formats in which we export, each with its ``description`` of what it holds.
- ``shipped``: the models that come with the package.
- ``download``: published files, fetched once.
- ``inception``: the Inception network that FID and Inception Score are defined by; ``vision_transformers``: DINOv2 and
  CLIP; ``lpips``: VGG16 with the weights of LPIPS.
"""
