"""Runs the command line and writes the most memory that it held at a time.

python scripts/benchmarks/peak_memory.py FILE --config=... --workdir=... [--mode=...]
"""

import json
import pathlib
import sys

from ddim_jax import main, memory


def peak_bytes() -> int:
    """Of the device that held the most; on the CPU, whose backend does not tell, of the whole process."""
    import jax

    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
    if max(peaks):
        return max(peaks)
    resident = memory.resident_memory()
    if resident is None:
        raise RuntimeError("neither JAX nor the system tells how much memory was held")
    return resident.peak


if __name__ == "__main__":
    status = main.run([sys.argv[0], *sys.argv[2:]])
    pathlib.Path(sys.argv[1]).write_text(json.dumps({"bytes": peak_bytes()}))
    sys.exit(status)
