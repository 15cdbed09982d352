"""A function of a batch, applied to any number of items over all devices of this process."""

import dataclasses
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax
import numpy as np

from ddim_jax import memory, parallel
from ddim_jax.errors import UserError
from ddim_jax.writers import say


@dataclasses.dataclass(frozen=True)
class BatchSize:
    """How many items a device takes at a time.

    Attributes:
        size: the number of items.
        may_shrink: whether to take fewer where the memory does not suffice; otherwise that is an error.
        what: the items in words.
        key: the setting that a user changes.
    """

    size: int
    may_shrink: bool = False
    what: str = "items"
    key: str = "batch_size"


class ShardedMap:
    """Applies ``function(variables, items) -> results`` in batches of one shape, so that it is compiled once.

    Items and results are trees of arrays with the item as leading axis. The last batch is padded with copies of its
    last item, and results are cut to the items given. An item's result must not depend on the others in its batch.

    The program is compiled ahead of its first run. XLA has planned its memory then, and a batch that does not fit is
    made smaller, or refused, before anything is computed.
    """

    def __init__(self, function: Callable[[Any, Any], Any], batch_size: int | BatchSize) -> None:
        """Prepares the program; it is compiled at the first call.

        Args:
            function: traced by JAX; sees ``batch_size`` items.
            batch_size: items per device at a time; a number must fit.
        """
        self._devices = parallel.local_devices()
        self._batch = BatchSize(batch_size) if isinstance(batch_size, int) else batch_size
        self._run: Any = parallel.map_over_batch(function, self._devices)
        self._compiled: dict[Hashable, Callable[[Any, Any], Any]] = {}

    @property
    def batch_size(self) -> int:
        """Items per device at a time: after :meth:`compile` or a call, those that fit."""
        return self._batch.size

    def compile(self, variables: Any, items: Any) -> None:
        """Compiles the program for items of these shapes, and settles how many of them fit.

        Args:
            variables: in place on the devices (``parallel.replicate``).
            items: one at least.

        Raises:
            UserError: the batch does not fit in the devices' memory.
        """
        while True:
            try:
                self._program(variables, items)
                return
            except Exception as error:
                if not memory.is_out_of_memory(error):
                    raise
                self._make_room(error)

    def chunks(self, variables: Any, items: Any) -> Iterator[tuple[slice, Any]]:
        """Yields (which items, their results as NumPy arrays), in order, as they are ready.

        The next batch is computed while the caller handles this one.

        Raises:
            UserError: the batch does not fit in the devices' memory.
        """
        variables = parallel.replicate(variables, self._devices)
        count, done = len(jax.tree.leaves(items)[0]), 0
        while done < count:
            try:
                for where, result in self._batches(variables, items, range(done, count)):
                    done = where.stop
                    yield where, result
            except Exception as error:
                if not memory.is_out_of_memory(error):
                    raise
                # What is done stays done; the rest is tried again in smaller batches.
                self._make_room(error)

    def __call__(self, variables: Any, items: Any) -> Any:
        """Results of all items."""
        results = [result for _, result in self.chunks(variables, items)]
        return jax.tree.map(lambda *parts: np.concatenate(parts), *results)

    def _batches(self, variables: Any, items: Any, which: range) -> Iterator[tuple[slice, Any]]:
        run = self._program(variables, items)
        per_call = self.batch_size * len(self._devices)
        ahead: tuple[slice, Any] | None = None
        for start in which[::per_call]:
            where = slice(start, min(start + per_call, which.stop))
            batch = jax.tree.map(lambda x, where=where: _padded(np.asarray(x)[where], per_call), items)
            result = run(variables, parallel.split_batch(batch, len(self._devices)))
            if ahead is not None:
                yield _fetched(*ahead)
            ahead = (where, result)
        if ahead is not None:
            yield _fetched(*ahead)

    def _program(self, variables: Any, items: Any) -> Callable[[Any, Any], Any]:
        """The compiled program for items of these shapes, with as many of them as fit."""
        while True:
            batch = parallel.split_batch(jax.tree.map(self._empty_batch, items), len(self._devices))
            arguments = variables, batch
            key = (jax.tree.structure(arguments), *((x.shape, x.dtype) for x in jax.tree.leaves(arguments)))
            if key in self._compiled:
                return self._compiled[key]
            compiled = self._run.lower(variables, batch).compile()
            # What compiling has left, and reading of weights before it, would not count as free.
            memory.return_unused_memory()
            if self._fits(memory.program_memory(compiled)):
                self._compiled[key] = parallel.runnable(self._run, compiled)

    def _empty_batch(self, x: Any) -> np.ndarray:
        shape = (len(self._devices) * self.batch_size, *np.shape(x)[1:])
        return np.zeros(shape, jax.dtypes.canonicalize_dtype(np.asarray(x).dtype))

    def _fits(self, needed: memory.ProgramMemory | None) -> bool:
        """Whether the program fits; if it may, the batch is made smaller for the next attempt."""
        batch, free = self._batch, memory.free_bytes(self._devices)
        if needed is None or free is None:
            return True
        usable = int(memory.USABLE * free)
        if needed.beside_arguments <= (usable if batch.may_shrink else free):
            return True
        # All of it is taken to grow with the batch: most does.
        fitting = memory.largest_fitting_batch(batch.size, 0, needed.beside_arguments, usable)
        if not batch.may_shrink:
            raise UserError(self._refusal(needed.beside_arguments, free, fitting))
        if batch.size == 1:
            return True  # may still fit in what is kept in reserve
        self._resize(max(1, fitting))
        return False

    def _make_room(self, error: Exception) -> None:
        """Halves the batch after it failed for lack of memory, or says that it does not fit."""
        size = self.batch_size
        if not self._batch.may_shrink or size == 1:
            raise UserError(self._refusal(None, memory.free_bytes(self._devices), size // 2)) from error
        self._resize(size - 1)
        say(f"out of memory with {size} {self._batch.what} per device at a time; going on with {self.batch_size}")

    def _resize(self, most: int) -> None:
        """Powers of two: a little more or less of free memory leaves the size, and so the rounding, as it is."""
        self._batch = dataclasses.replace(self._batch, size=memory.power_of_two_below(most))
        self._compiled.clear()

    def _refusal(self, needed: int | None, free: int | None, fitting: int) -> str:
        batch = self._batch
        return memory.batch_refusal(batch.size, batch.what, batch.key, needed, free, fitting)


def _padded(x: np.ndarray, size: int) -> np.ndarray:
    return np.pad(x, [(0, size - len(x))] + [(0, 0)] * (x.ndim - 1), mode="edge")


def _fetched(where: slice, result: Any) -> tuple[slice, Any]:
    return where, jax.tree.map(lambda x: x[: where.stop - where.start], parallel.join_batch(result))
