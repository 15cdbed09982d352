"""A function of a batch, applied to any number of items over all devices of this process."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from ddim_jax import parallel


class ShardedMap:
    """Applies ``function(variables, items) -> results`` in batches of one shape, so that it is compiled once.

    Items and results are trees of arrays with the item as leading axis. The last batch is padded with copies of its
    last item, and results are cut to the items given. An item's result must not depend on the others in its batch.
    """

    def __init__(self, function: Callable[[Any, Any], Any], batch_size: int) -> None:
        """Prepares the program; it is compiled at the first call.

        Args:
            function: traced by JAX; sees ``batch_size`` items.
            batch_size: items per device at a time.
        """
        self._devices = parallel.local_devices()
        self._per_call = batch_size * len(self._devices)
        self._run = parallel.pmap_map(function, self._devices)

    def chunks(self, variables: Any, items: Any) -> Iterator[tuple[slice, Any]]:
        """Yields (which items, their results as NumPy arrays), in order, as they are ready.

        The next batch is computed while the caller handles this one.
        """
        variables = parallel.replicate(variables, self._devices)
        count = len(jax.tree.leaves(items)[0])
        ahead: tuple[slice, Any] | None = None
        for start in range(0, count, self._per_call):
            where = slice(start, min(start + self._per_call, count))
            batch = jax.tree.map(lambda x, where=where: self._padded(np.asarray(x)[where]), items)
            result = self._run(variables, parallel.shard(batch, len(self._devices)))
            if ahead is not None:
                yield self._fetched(*ahead)
            ahead = (where, result)
        if ahead is not None:
            yield self._fetched(*ahead)

    def __call__(self, variables: Any, items: Any) -> Any:
        """Results of all items."""
        results = [result for _, result in self.chunks(variables, items)]
        return jax.tree.map(lambda *parts: np.concatenate(parts), *results)

    def _padded(self, x: np.ndarray) -> np.ndarray:
        return np.pad(x, [(0, self._per_call - len(x))] + [(0, 0)] * (x.ndim - 1), mode="edge")

    def _fetched(self, where: slice, result: Any) -> tuple[slice, Any]:
        return where, jax.tree.map(lambda x: x[: where.stop - where.start], parallel.unshard(result))
