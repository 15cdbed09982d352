"""Where a run's numbers go: ``metrics.jsonl``, TensorBoard, the log, a progress bar."""

import contextlib
import io
import json
import logging
import math
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
from etils import epath
from tqdm import tqdm

from ddim_jax.errors import UserError, on_one_line
from ddim_jax.files import make_folder, whole_file, writing
from ddim_jax.records import read_lines

log = logging.getLogger("ddim_jax")

# Whether whoever calls wants to hear nothing.
_silenced = threading.Event()

# How old TensorBoard's view of a run may be.
_FLUSH_SECONDS = 120.0


class MetricWriter:
    """Appends metrics to ``metrics.jsonl`` and, if wanted, TensorBoard event files.

    A resumed run starts again from its last checkpoint, so lines of later steps, written before it was killed, are
    dropped first: each step stands in the file once. What is before the last checkpoint is written nowhere again:
    hence :meth:`flush` comes before each.

    clu's writers would import TensorFlow; tensorboardX writes the same files without it.
    """

    def __init__(self, workdir: epath.PathLike, resume_step: int = 0, tensorboard: bool = True) -> None:
        """Opens the files of ``workdir``; keeps lines up to and including ``resume_step``."""
        workdir = epath.Path(workdir)
        self._path = workdir / "metrics.jsonl"
        self._drop_lines_after(resume_step)
        with writing(self._path):
            self._file = self._path.open("a")
        self._board = _EventFile(workdir / "tensorboard", resume_step + 1) if tensorboard else None

    def _drop_lines_after(self, step: int) -> None:
        if not self._path.exists():
            # A link that leads nowhere is none to write through.
            self._path.unlink(missing_ok=True)
            return
        damaged: list[int] = []
        number = 0
        with whole_file(self._path) as partial, partial.open("wb") as file:
            for number, (line, record) in enumerate(read_lines(self._path), start=1):
                if record is None:
                    damaged.append(number)
                # Lines that others have added say of no step that it is too late.
                elif not _is_after(record.get("step"), step):
                    file.write(line + b"\n")
        # The last line was being written when the run was killed.
        if lost := [place for place in damaged if place < number]:
            others = "" if len(lost) == 1 else f" (and {len(lost) - 1:,} more)"
            say(f"warning: {self._path}: line {lost[0]:,}{others} cannot be read, and was left out")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one line; a value that is not finite is written as null, since JSON has no NaN."""
        numbers = {key: float(value) for key, value in values.items()}
        record = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
        with writing(self._path):
            self._file.write(json.dumps({"step": step, **record}) + "\n")
            self._file.flush()
        if self._board is not None:
            for key, value in numbers.items():
                self._board.add(step, "scalar", key, value)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Shows uint8 [h, w, c] in TensorBoard."""
        if self._board is not None:
            self._board.add(step, "image", name, image, dataformats="HWC")

    def text(self, step: int, name: str, text: str) -> None:
        """Shows text in TensorBoard, as it is."""
        if self._board is not None:
            # TensorBoard takes it for Markdown, where what is indented stays as it is.
            self._board.add(step, "text", name, "".join(f"    {line}\n" for line in text.splitlines()))

    def flush(self) -> None:
        """Brings all that was written so far to the disk."""
        with writing(self._path):
            self._file.flush()
            if "://" not in os.fspath(self._path):
                os.fsync(self._file.fileno())
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Flushes and closes all files."""
        with writing(self._path):
            self._file.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the files, also when the run fails, whose reason counts then."""
        with contextlib.suppress(UserError) if error is not None else contextlib.nullcontext():
            self.close()


def _is_after(found: Any, step: int) -> bool:
    return isinstance(found, (int, float)) and found > step


class _EventFile:
    """TensorBoard's file of one start of a run, by tensorboardX.

    Its ``SummaryWriter`` hands everything to a thread, and cannot tell when that has written it.
    """

    def __init__(self, folder: epath.Path, purge_step: int) -> None:
        """Opens a new file, which says that of older ones the steps from ``purge_step`` on do not count."""
        make_folder(folder)
        self._folder = folder
        self._tensorboard = _import_tensorboard()
        events = self._tensorboard.event_file_writer
        self._event = events.event_pb2.Event
        # Two starts within a second must not have the same name.
        with writing(folder):
            self._file = events.EventsWriter(f"{folder}/events", f".{uuid.uuid4().hex[:8]}")
        start = self._tensorboard.proto.event_pb2.SessionLog
        self._write(self._event(step=purge_step, session_log=start(status=start.START)))
        self._flushed = time.monotonic()

    def add(self, step: int, kind: str, *values: Any, **settings: Any) -> None:
        """Adds what tensorboardX's ``summary`` has a function of this name for."""
        summary = getattr(self._tensorboard.summary, kind)(*values, **settings)
        self._write(self._event(step=step, summary=summary))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Brings it to the disk."""
        with writing(self._folder):
            self._file.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        with writing(self._folder):
            self._file.close()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        with writing(self._folder):
            self._file.write_event(event)


def _import_tensorboard() -> Any:
    """Imports tensorboardX without PyTorch.

    It imports that where it is installed, only to accept its tensors: seconds and hundreds of MiB.
    """
    hide = "torch" not in sys.modules
    if hide:
        sys.modules["torch"] = None  # pyright: ignore[reportArgumentType] - Python's way to make an import fail
    try:
        import tensorboardX.event_file_writer
        import tensorboardX.proto.event_pb2
        import tensorboardX.summary
    finally:
        if hide:
            del sys.modules["torch"]
    return tensorboardX


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

    def flush(self) -> None:
        """Has nothing to flush."""

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
    show = show and not _silenced.is_set()
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


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Meanwhile nothing is said, and no bar shown, in any thread."""
    _silenced.set()
    try:
        yield
    finally:
        _silenced.clear()


def say(message: str) -> None:
    """Tells the user one line without tearing a progress bar apart; names in it cannot steer the terminal."""
    if not _silenced.is_set():
        tqdm.write(on_one_line(message), file=sys.stderr)
