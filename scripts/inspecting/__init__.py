"""The parts of ``scripts/inspect_program.py``: a program's text, its traffic, and GPUs that are not there."""
