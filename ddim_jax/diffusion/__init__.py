"""The mathematics of diffusion: pure functions of arrays, which know no network, config or device.

To learn diffusion from the code, read in this order:

1. ``schedule.py``: how much noise each level has, and how levels are numbered.
2. ``losses.py``: how a network learns to remove noise.
3. ``prediction.py``: from the network's output to a clean image and the noise in it.
4. ``timesteps.py``: which of the levels a fast sampler visits.
5. ``steps.py``: a sampler's arithmetic as a table with one row a step: DDIM, DDPM.
6. ``samplers.py``: the loop that runs the table, and all samplers by name.
7. ``solvers.py``: deterministic samplers of higher order, as tables too: Heun, PLMS, DPM-Solver++, UniPC.

And what is built on them:

- ``guidance.py``: classifier-free guidance.
- ``inversion.py``: from an image back to its noise.
- ``interpolation.py``: between noises, and so between images.
- ``editing.py``: starting from a picture, or from parts of one.
- ``trajectory.py``: keeping what a sampler passes on its way.
- ``likelihood.py``: how probable an image is, in bits per dimension.
"""
