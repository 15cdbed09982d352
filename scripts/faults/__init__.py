"""Faults made on purpose, for ``scripts/torture.py``."""
