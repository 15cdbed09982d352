"""Training: the state, one step, and the run made of such steps.

Read ``state.py`` (what a run carries along), then ``step.py`` (what happens to it), then the rest:

- ``program.py``: the step as it runs, on all devices, compiled ahead of time.
- ``loop.py``: the loop over steps, and what happens at which step.
- ``checkpoint.py``: how states are kept (the only use of Orbax); ``host_average.py``: an average in the host's memory.
- ``pictures.py``, ``validation.py``, ``best.py``: what is drawn and measured on the way.
"""
