"""What training frameworks save around a state dict: ``{"state_dict": ...}``, moving averages beside it, a step."""

from collections.abc import Mapping
from typing import Any, NamedTuple

# What they call a state dict, that of the moving averages, and the number of steps.
_STATE_KEYS = ("state_dict", "model_state_dict", "model", "module")
_AVERAGE_KEYS = ("ema", "ema_state_dict", "state_dict_ema", "model_ema")
_STEP_KEYS = ("global_step", "step")
# What some call a list of averages, in the order of the parameters.
_LIST_KEY = "shadow_params"


class Unwrapped(NamedTuple):
    """Contents of a file without what was saved around them.

    Attributes:
        raw: state dict of the raw parameters; None where there are only averages.
        averages: state dict of their moving averages; None where there is none.
        step: number of training steps done; 0 when the file does not say.
    """

    raw: Mapping[Any, Any] | None
    averages: Mapping[Any, Any] | None
    step: int


def unwrapped(tree: Mapping[Any, Any]) -> Unwrapped:
    """Finds the state dicts in what was saved; what has no wrapper is one itself."""
    raws = [tree[key] for key in _STATE_KEYS if isinstance(tree.get(key), Mapping)]
    averages = [tree[key] for key in _AVERAGE_KEYS if isinstance(tree.get(key), Mapping)]
    if not raws and not averages:
        return Unwrapped(tree, None, 0)
    steps = [tree[key] for key in _STEP_KEYS if type(tree.get(key)) is int and tree[key] >= 0]
    inner = unwrapped(raws[0]) if raws else Unwrapped(None, None, 0)
    averages = [_by_name(each, inner.raw) for each in averages]
    return Unwrapped(inner.raw, averages[0] if averages else inner.averages, steps[0] if steps else inner.step)


def _by_name(averages: Mapping[Any, Any], raw: Mapping[Any, Any] | None) -> Mapping[Any, Any]:
    """Averages by name, where they are a list in the order of the parameters; what is not trained has no average."""
    listed = averages.get(_LIST_KEY)
    if raw is None or not isinstance(listed, (list, tuple)):
        return averages
    named, left = dict(raw), list(reversed(listed))
    for name, value in raw.items():
        if left and getattr(left[-1], "shape", None) == getattr(value, "shape", ()):
            named[name] = left.pop()
    # Averages that are left over belong to another network; as they are, they are refused.
    return averages if left else named
