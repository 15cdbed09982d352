"""Training: the state, one step, checkpoints.

Read ``state.py`` (what a run carries along), then ``step.py`` (what happens to it), then ``checkpoint.py``.
"""
