"""Training: what happens to a state in a step, how steps run on devices, and what is due between them.

The mathematics:

- ``state.py``: what a run carries from step to step; optimisers, learning rates and the moving average
- ``step.py``: one step, DDPM's algorithm 1, as a pure function of state and batch
- ``augmentation.py``: images changed at random, and what the network is told of it

On the devices:

- ``data.py``: the images, opened for all processes and dealt out in batches
- ``program.py``: the step compiled for all devices, one or several at a time
- ``groups.py``: which steps are dispatched together, and what is due in them
- ``host_average.py``: the moving average kept in the host's memory
- ``fitting.py``: whether a batch fits into the devices' memory, and which one would

The run:

- ``loop.py``: the loop over steps, and what happens at which step
- ``checkpoint.py``: states saved and restored; ``checksums.py``: what tells that they are what was saved
- ``initial_weights.py``: a new run that begins with another's weights
- ``validation.py``: the losses on images that training does not see
- ``pictures.py``: samples drawn on the way and at the end
- ``best.py``: samples measured, and the best state kept
- ``log.py``: what a run says of itself
- ``stop_signals.py``: the signals to save and stop

The job ``jobs/train.py`` puts them together.
"""
