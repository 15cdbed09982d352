"""Says which packages there are; all other metadata is in ``pyproject.toml``.

``configs/`` is installed inside the package, where ``--config=NAME`` finds its files.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["ddim_jax", "ddim_jax.*"]), "ddim_jax.configs"],
    package_dir={"ddim_jax.configs": "configs"},
)
