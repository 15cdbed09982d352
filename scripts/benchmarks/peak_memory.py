"""Runs the command line and writes the most memory that it held at a time.

python scripts/benchmarks/peak_memory.py FILE --config=... --workdir=... [--mode=...]
"""

import json
import pathlib
import resource
import sys

from ddim_jax import main, memory


def peak_bytes() -> int:
    """The peak of the device that held the most; on the CPU, whose backend does not tell, of the whole process."""
    import jax

    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
    if max(peaks):
        return max(peaks)
    resident = memory.resident_memory()
    if resident is not None:
        return resident.peak
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    status = main.run([sys.argv[0], *sys.argv[2:]])
    pathlib.Path(sys.argv[1]).write_text(json.dumps({"bytes": peak_bytes()}))
    sys.exit(status)
