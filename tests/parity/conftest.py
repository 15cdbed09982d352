"""Lets diffusers and torch-fidelity be imported beside a torchvision that was built for another PyTorch.

They import it for image files and models that are not compared here. Such a torchvision fails at import, since the
operators of its compiled part are missing; declared, and never called, they do no harm.
"""

import re

import pytest

torch = pytest.importorskip("torch")

_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")


def _declare_missing_operators() -> None:
    _LIBRARY.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    for _ in range(50):
        try:
            import torchvision  # noqa: F401
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise
            _LIBRARY.define(f"{missing[1]}(Tensor values) -> Tensor")
        else:
            return


try:
    import torchvision  # noqa: F401
except RuntimeError:
    _declare_missing_operators()
except ImportError:
    pass
