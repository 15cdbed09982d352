"""The command line as ``python -m ddim_jax``."""

import sys

from ddim_jax.main import command

if __name__ == "__main__":
    sys.exit(command())
