"""A process that reads hostile files, one a line of its input, and says as JSON what came of each.

It holds what a reader of the package takes of memory and of time, so that a file which breaks it breaks nothing else.
"""

import json
import pathlib
import re
import resource
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from ddim_jax.cache import is_trusted
from ddim_jax.config import DataConfig, EvalConfig
from ddim_jax.data.first_images import read_first_images
from ddim_jax.errors import UserError
from ddim_jax.jobs.edit import read_mask
from ddim_jax.measuring.image_sets import open_image_set
from ddim_jax.measuring.reference import has_statistics
from ddim_jax.measuring.reference_file import read_reference
from ddim_jax.npz import load_arrays
from ddim_jax.weights.array_files import read_npz, read_safetensors
from ddim_jax.weights.forms import read_weights
from ddim_jax.weights.inception import inception_variables
from ddim_jax.weights.torch_file import read_torch_file
from ddim_jax.weights.vision_transformers import transformer_variables

# Beyond what the process has when it starts.
_MORE_ADDRESSES = 4 * 2**30

_DATA = DataConfig(image_size=8, channels=3)


def _read_folder(path: str) -> Any:
    images = open_image_set(path, _DATA)
    return next(images.batches(range(len(images)), 8))  # pyright: ignore[reportArgumentType]


# By the name of what is read: by which function.
READERS: dict[str, Callable[[str], Any]] = {
    "weights": read_weights,
    "torch file": read_torch_file,
    "safetensors": lambda path: read_safetensors(pathlib.Path(path)),
    "exported npz": lambda path: read_npz(pathlib.Path(path)),
    "npz": load_arrays,
    "images": lambda path: open_image_set(path, _DATA),
    "folder": _read_folder,
    "reference": read_reference,
    "eval.reference": lambda path: has_statistics(EvalConfig(reference=path)),
    "mask": lambda path: read_mask(path, (8, 8)),
    "first image": lambda path: read_first_images(_DATA, "", path, 1, "edit.path"),
    "inception": inception_variables,
    "dinov2": lambda path: transformer_variables("dinov2", path),
    "cache": is_trusted,
}


def _bytes(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found, name
    return int(found[1]) * 1024


def _read(reader: str, path: str) -> dict[str, Any]:
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak of memory counts from here
    before, started = _bytes("VmRSS"), time.process_time()
    try:
        came, line = "read", repr(READERS[reader](path))[:200]
    except UserError as error:
        came, line = "refused", str(error)
    except BaseException:
        came, line = "traceback", traceback.format_exc(limit=-2)
    seconds = time.process_time() - started
    return {"came": came, "line": line, "seconds": seconds, "bytes": _bytes("VmHWM") - before}


def main() -> None:
    """Reads until the input ends."""
    most = _bytes("VmSize") + _MORE_ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for line in sys.stdin:
        print("answer:" + json.dumps(_read(*json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
