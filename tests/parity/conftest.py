"""A torchvision that was built for another PyTorch breaks ``import diffusers``; without it diffusers works."""

import sys

try:
    import torchvision  # noqa: F401
except (ImportError, RuntimeError):
    sys.modules["torchvision"] = None
