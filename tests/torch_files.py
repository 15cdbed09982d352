"""Writes PyTorch's files without PyTorch, and such as PyTorch would never write."""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from typing import NamedTuple

import numpy as np

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C


class Named:
    """A class or function of a module that need not be installed."""

    def __init__(self, module, name):
        self.line = f"c{module}\n{name}\n".encode()

    def __call__(self):
        raise AssertionError("only named")


class Storage(NamedTuple):
    key: str
    kind: str
    values: np.ndarray


class Tensor(NamedTuple):
    storage: Storage
    offset: int
    size: tuple
    stride: tuple


class TorchPickler(pickle._Pickler):
    """Pickles tensors as PyTorch does."""

    def __init__(self, file, layout, protocol=2):
        super().__init__(file, protocol)
        self.layout = layout
        self.storages = {}

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Named):
            return self.write(obj.line)
        return super().save(obj, save_persistent_id)

    def persistent_id(self, obj):
        if not isinstance(obj, Storage):
            return None
        self.storages[obj.key] = obj.values
        view = (None,) if self.layout == "old" else ()
        return ("storage", Named("torch", obj.kind), obj.key, "cuda:0", len(obj.values), *view)

    def reducer_override(self, obj):
        if isinstance(obj, Tensor):
            return Named("torch._utils", "_rebuild_tensor_v2"), (*obj, False, OrderedDict())
        return NotImplemented


def write(path, tree, layout, byte_order="little"):
    program = io.BytesIO()
    pickler = TorchPickler(program, layout)
    pickler.dump(tree)
    write_program(path, program.getvalue(), layout, pickler.storages, byte_order)


def write_program(path, program, layout, storages=None, byte_order="little"):
    storages = storages or {}
    if layout == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("model/data.pkl", program)
            archive.writestr("model/byteorder", byte_order)
            for key, values in storages.items():
                archive.writestr(f"model/data/{key}", values.tobytes())
            archive.writestr("model/version", "3\n")
        return
    with path.open("wb") as file:
        pickle.dump(MAGIC_NUMBER, file, protocol=2)
        pickle.dump(1001, file, protocol=2)
        pickle.dump({"little_endian": True}, file, protocol=2)
        file.write(program)
        pickle.dump(sorted(storages), file, protocol=2)
        for key in sorted(storages):
            file.write(struct.pack("<q", len(storages[key])) + storages[key].tobytes())


def tensor(key, kind, values):
    """A contiguous tensor with a storage of its own."""
    stride = tuple(step // values.itemsize for step in np.asarray(values, order="C").strides)
    return Tensor(Storage(key, kind, values.reshape(-1)), 0, values.shape, stride)
