"""One file per ``--mode``: a job reads the config, drives the layers below, and writes the workdir."""
