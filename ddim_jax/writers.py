"""Where a run's numbers go: ``metrics.jsonl``, TensorBoard, the log, a progress bar."""

import io
import json
import logging
import math
import sys
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from etils import epath
from tqdm import tqdm

from ddim_jax.errors import on_one_line
from ddim_jax.files import write_whole

log = logging.getLogger("ddim_jax")


class MetricWriter:
    """Appends metrics to ``metrics.jsonl`` and, if wanted, TensorBoard event files.

    A resumed run starts again from its last checkpoint, so lines of later steps, written before it was killed, are
    dropped first: each step stands in the file once.

    clu's writers would import TensorFlow; tensorboardX writes the same files without it.
    """

    def __init__(self, workdir: epath.PathLike, resume_step: int = 0, tensorboard: bool = True) -> None:
        """Opens the files of ``workdir``; keeps lines up to and including ``resume_step``."""
        workdir = epath.Path(workdir)
        self._path = workdir / "metrics.jsonl"
        self._drop_lines_after(resume_step)
        self._file = self._path.open("a")
        self._board = None
        if tensorboard:
            self._board = _summary_writer(str(workdir / "tensorboard"), resume_step + 1)

    def _drop_lines_after(self, step: int) -> None:
        if not self._path.exists():
            # A link that leads nowhere is none to write through.
            self._path.unlink(missing_ok=True)
            return
        kept = []
        for line in self._path.read_text().splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # the line that was being written when the run was killed
            if record["step"] <= step:
                kept.append(line + "\n")
        write_whole(self._path, "".join(kept))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one line; a value that is not finite is written as null, since JSON has no NaN."""
        numbers = {key: float(value) for key, value in values.items()}
        record = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
        self._file.write(json.dumps({"step": step, **record}) + "\n")
        self._file.flush()
        if self._board is not None:
            for key, value in numbers.items():
                self._board.add_scalar(key, value, step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Shows uint8 [h, w, c] in TensorBoard."""
        if self._board is not None:
            self._board.add_image(name, image, step, dataformats="HWC")

    def text(self, step: int, name: str, text: str) -> None:
        """Shows text in TensorBoard, as it is."""
        if self._board is not None:
            # TensorBoard takes it for Markdown, where what is indented stays as it is.
            self._board.add_text(name, "".join(f"    {line}\n" for line in text.splitlines()), step)

    def close(self) -> None:
        """Flushes and closes all files."""
        self._file.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *unused: Any) -> None:
        """Closes the files, also when the run fails."""
        self.close()


def _summary_writer(folder: str, purge_step: int) -> Any:
    """A tensorboardX writer, made without PyTorch.

    tensorboardX imports PyTorch where that is installed, only to accept its tensors: seconds and hundreds of MiB.
    """
    hide = "torch" not in sys.modules
    if hide:
        sys.modules["torch"] = None  # pyright: ignore[reportArgumentType] - Python's way to make an import fail
    try:
        from tensorboardX import SummaryWriter
    finally:
        if hide:
            del sys.modules["torch"]
    return SummaryWriter(folder, purge_step=purge_step)


class SilentWriter(MetricWriter):
    """Writes nothing: what all processes but the first use."""

    def __init__(self) -> None:
        """Opens nothing."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Drops the values."""

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Drops the image."""

    def text(self, step: int, name: str, text: str) -> None:
        """Drops the text."""

    def close(self) -> None:
        """Has nothing to close."""


class _Lines(io.TextIOBase):
    """Standard error for a progress bar without a terminal: what would overwrite a line becomes a line of its own."""

    def __init__(self) -> None:
        self._last = ""

    def write(self, text: str) -> int:
        line = text.strip()
        # The bar says its last state again when it ends.
        if line and line != self._last:
            sys.stderr.write(line + "\n")
            self._last = line
        return len(text)

    def flush(self) -> None:
        sys.stderr.flush()


def is_watched() -> bool:
    """Returns whether somebody looks at what is printed: in a terminal or a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def progress(
    total: int,
    description: str,
    unit: str,
    initial: int = 0,
    show: bool = True,
    leave: bool | None = True,
    delay: float = 0.0,
) -> tqdm:
    """A progress bar with rate and ETA; in a log file a line now and then instead of every moment.

    Args:
        total: number of units.
        description: what is being done.
        unit: of what.
        initial: units done already.
        show: whether to show it at all.
        leave: keep it when it is done; None for one that stands in no other.
        delay: seconds before it is shown.
    """
    if not is_watched():
        return tqdm(
            total=total,
            initial=initial,
            desc=description,
            unit=unit,
            disable=not show,
            bar_format="{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]",
            mininterval=10.0,
            leave=leave,
            delay=delay,
            file=_Lines(),
        )
    return tqdm(
        total=total,
        initial=initial,
        desc=description,
        unit=unit,
        disable=not show,
        dynamic_ncols=True,
        mininterval=0.2,
        leave=leave,
        delay=delay,
        file=sys.stderr,
    )


def say(message: str) -> None:
    """Tells the user one line without tearing a progress bar apart; names in it cannot steer the terminal."""
    tqdm.write(on_one_line(message), file=sys.stderr)
