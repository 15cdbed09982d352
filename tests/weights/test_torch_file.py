"""PyTorch's files read without PyTorch: what they hold, and that nothing in a hostile or damaged one gets through."""

import collections
import io
import pickle
import random
import sys
import time
import warnings
import zipfile

import ml_dtypes
import numpy as np
import pytest
from torch_files import Named, Storage, Tensor, TorchPickler, tensor, write, write_program

from ddim_jax.errors import UserError
from ddim_jax.weights.torch_file import read_torch_file

LAYOUTS = ("zip", "old")


def refusal(path):
    """The one line with which reading is refused."""
    with pytest.raises(UserError) as caught:
        read_torch_file(path)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(str(path))
    return message.removeprefix(str(path)).strip()


def example():
    """A small tree with views that share a storage."""
    values = np.arange(12, dtype=np.float32)
    storage = Storage("0", "FloatStorage", values)
    tree = {
        "model.weight": Tensor(storage, 0, (3, 4), (4, 1)),
        "transposed": Tensor(storage, 0, (4, 3), (1, 4)),
        "windows": Tensor(storage, 2, (4, 3), (2, 1)),
        "expanded": Tensor(storage, 5, (2, 3), (0, 0)),
        "scalar": Tensor(storage, 7, (), ()),
        "none": Tensor(storage, 12, (0, 3), (3, 1)),
        "steps": tensor("1", "LongStorage", np.array([7, 2**40])),
        "epoch": 3,
    }
    expected = {
        "model.weight": values.reshape(3, 4),
        "transposed": values.reshape(3, 4).T,
        "windows": np.lib.stride_tricks.sliding_window_view(values[2:], 3)[::2],
        "expanded": np.full((2, 3), 5.0, np.float32),
        "scalar": values[7],
        "none": np.zeros((0, 3), np.float32),
        "steps": np.array([7, 2**40]),
    }
    return tree, expected


# --- what is read -------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_views_of_shared_storages(tmp_path, layout):
    path = tmp_path / "weights.pth"
    tree, expected = example()
    write(path, tree, layout)
    read = read_torch_file(path)
    assert read.pop("epoch") == 3
    assert read.keys() == expected.keys()
    for name, array in expected.items():
        assert read[name].dtype == array.dtype and not read[name].flags.writeable
        np.testing.assert_array_equal(read[name], array)
    assert np.shares_memory(read["model.weight"], read["transposed"])


@pytest.mark.parametrize("byte_order", ["little", "big"])
def test_every_dtype_in_either_byte_order(tmp_path, byte_order):
    values = {
        "DoubleStorage": np.array([1.5, -np.pi]),
        "FloatStorage": np.array([1.5, -np.pi], np.float32),
        "HalfStorage": np.array([1.5, -3], np.float16),
        "BFloat16Storage": np.array([1.5, -3], ml_dtypes.bfloat16),
        "LongStorage": np.array([2**40, -1]),
        "IntStorage": np.array([2**20, -1], np.int32),
        "ShortStorage": np.array([300, -1], np.int16),
        "CharStorage": np.array([3, -1], np.int8),
        "ByteStorage": np.array([3, 255], np.uint8),
        "BoolStorage": np.array([True, False]),
        "ComplexFloatStorage": np.array([1 + 2j, -3], np.complex64),
        "ComplexDoubleStorage": np.array([1 + 2j, -3], np.complex128),
    }
    tree = {}
    for key, (kind, array) in enumerate(values.items()):
        part = array.itemsize // (2 if array.dtype.kind == "c" else 1)
        stored = array.view(f"u{part}").byteswap() if byte_order != sys.byteorder else array
        stored = stored.view(array.dtype) if array.dtype != bool else array
        tree[kind] = tensor(str(key), kind, stored)
    path = tmp_path / "weights.pth"
    write(path, tree, "zip", byte_order)
    read = read_torch_file(path)
    for kind, array in values.items():
        assert read[kind].dtype == array.dtype
        np.testing.assert_array_equal(read[kind], array)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_and_containers(tmp_path, protocol):
    tree = {
        "numbers": [0, -1, 255, 70_000, 2**40, -(2**80), 1.5, True, False, None, 1 + 2j],
        "text": ["", "ascii", "ünïcode", b"bytes \xff", "long" * 100],
        "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        "sets": [set(), {1, 2, 3}],
        ("a", 1): {1: "integer key", None: "none"},
        "many": list(range(2000)),
    }
    program = io.BytesIO()
    TorchPickler(program, "zip", protocol).dump(tree)
    path = tmp_path / "plain.pth"
    write_program(path, program.getvalue(), "zip")
    assert read_torch_file(path) == tree


def test_names_of_classes_that_hold_no_tensors(tmp_path):
    program = (
        b"\x80\x02(ctorch\nSize\nK\x02K\x03\x86\x85Rctorch\nfloat32\nctorch\ndevice\nX\x04\x00\x00\x00cudaK\x01\x86Rt."
    )
    write_program(tmp_path / "names.pth", program, "zip")
    assert read_torch_file(tmp_path / "names.pth") == ((2, 3), "torch.float32", "cuda:1")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dictionaries_with_attributes(tmp_path, layout):
    """A module's state dict is an OrderedDict that carries version numbers as an attribute."""
    state = collections.OrderedDict(weight=tensor("0", "FloatStorage", np.ones((2, 2), np.float32)))
    state._metadata = collections.OrderedDict({"": {"version": 1}})
    write(tmp_path / "state.pth", state, layout)
    read = read_torch_file(tmp_path / "state.pth")
    assert type(read) is dict and list(read) == ["weight"]
    np.testing.assert_array_equal(read["weight"], np.ones((2, 2)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_list_that_the_published_ddim_code_saves(tmp_path, layout):
    """Model (wrapped in DataParallel), optimiser, epoch, step, moving average: in a list, not a dictionary."""
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
    optimizer = {
        "state": {0: {"step": 9, "exp_avg": tensor("1", "FloatStorage", kernel / 2)}},
        "param_groups": [{"lr": 2e-4, "betas": (0.9, 0.999), "amsgrad": False, "params": [0]}],
    }
    saved = [
        collections.OrderedDict({"module.conv_in.weight": tensor("0", "FloatStorage", kernel)}),
        optimizer,
        12,
        34_567,
        {"module.conv_in.weight": tensor("2", "FloatStorage", kernel + 1)},
    ]
    write(tmp_path / "ckpt.pth", saved, layout)
    model, state, epoch, step, ema = read_torch_file(tmp_path / "ckpt.pth")
    assert (epoch, step, state["param_groups"]) == (12, 34_567, optimizer["param_groups"])
    np.testing.assert_array_equal(model["module.conv_in.weight"], kernel)
    np.testing.assert_array_equal(state["state"][0]["exp_avg"], kernel / 2)
    np.testing.assert_array_equal(ema["module.conv_in.weight"], kernel + 1)


# --- what is not --------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_cut_anywhere_is_refused(tmp_path, layout):
    whole, cut = tmp_path / "whole.pth", tmp_path / "cut.pth"
    write(whole, example()[0], layout)
    content = whole.read_bytes()
    for length in range(len(content)):
        cut.write_bytes(content[:length])
        refusal(cut)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_with_a_wrong_byte_anywhere_is_refused_or_read(tmp_path, layout):
    whole, wrong = tmp_path / "whole.pth", tmp_path / "wrong.pth"
    write(whole, example()[0], layout)
    content = whole.read_bytes()
    rng = random.Random(0)
    for position in range(len(content)):
        wrong.write_bytes(content[:position] + rng.randbytes(1) + content[position + 1 :])
        try:
            read_torch_file(wrong)
        except UserError as error:
            assert "\n" not in str(error)


def test_files_that_are_no_weights(tmp_path):
    path = tmp_path / "weights.pth"
    assert "No such file" in refusal(path)
    assert "Is a directory" in refusal(tmp_path)
    path.write_bytes(b"")
    assert refusal(path) == "is empty: download or copy it again"
    path.write_bytes(b"\n<!DOCTYPE html><html>Not Found</html>")
    assert "is a web page" in refusal(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "is not a PyTorch file" in refusal(path)
    path.write_bytes(pickle.dumps({"weight": 1}))
    assert "is not a PyTorch file" in refusal(path)
    with path.open("wb") as file:
        np.savez(file, weight=np.ones(3))
    assert refusal(path) == "is a zip archive, but not one that torch.save wrote"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/model.py"):
            archive.writestr(f"model/{name}", b"\x80\x02}.")
    assert "TorchScript" in refusal(path)


class Attack:
    """Unpickles to a call of ``function``."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("layout", LAYOUTS)
def test_foreign_classes_are_named_and_never_called(tmp_path, layout):
    path, trace = tmp_path / "weights.pth", tmp_path / "trace"
    attacks = {
        "posix.system": Attack(__import__("os").system, f"touch {trace}"),
        "builtins.exec": Attack(exec, f"open({str(trace)!r}, 'w')"),
        "builtins.getattr": Attack(getattr, "text", "join"),
        # Python 3.13 says pathlib._local.
        f"{type(trace).__module__}.PosixPath": trace,
        "numpy.core.multiarray.scalar": Attack(Named("numpy.core.multiarray", "scalar"), 1),
        "test_torch_file.Attack": Attack,
        "torch._utils._rebuild_tensor_v3": Attack(Named("torch._utils", "_rebuild_tensor_v3")),
        "torch.load": Attack(Named("torch", "load"), str(trace)),
        "numpy.FloatStorage": Attack(Named("numpy", "FloatStorage")),
    }
    for name, attack in attacks.items():
        write(path, {"epoch": [attack]}, layout)
        expected = f"holds a foreign class {name}; only tensors and plain containers are read"
        assert refusal(path).replace("__builtin__", "builtins") == expected
        assert not trace.exists()


def test_a_name_with_line_breaks_stays_one_line(tmp_path):
    write_program(tmp_path / "w.pth", b"\x80\x04\x8c\x04a\nb\x1b\x8c\x02os\x93.", "zip")
    assert r"a\nb\x1b.os" in refusal(tmp_path / "w.pth")


GLOBAL_REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
PROGRAMS = {
    "calls a dictionary": b"}(tR.",
    "calls text": b"X\x01\x00\x00\x00a)R.",
    "calls what a call returned": b"ccollections\nOrderedDict\n)R)R.",
    "a class as value": b"ccollections\nOrderedDict\n.",
    "sets attributes of a function": GLOBAL_REBUILD + b"}X\x08\x00\x00\x00__code__Nsb.",
    "sets slots of a function": GLOBAL_REBUILD + b"N}X\x0c\x00\x00\x00__defaults__)s\x86b.",
    "sets attributes of a class": b"ctorch\nSize\n}X\x01\x00\x00\x00aNsb.",
    "makes an object": b"ccollections\nOrderedDict\n)\x81.",
    "an instance by name": b"(icollections\nOrderedDict\n.",
    "a registered extension": b"\x82\x01.",
    "an object with keywords": b"ctorch\nSize\n)}\x92.",
    "an instance by class": b"(ctorch\nSize\no.",
    "a buffer from elsewhere": b"\x97.",
    "a persistent id that is text": b"X\x01\x00\x00\x000Q.",
    "a persistent id in a line": b"Pstorage\n.",
    "a persistent id of a module": b"(X\x06\x00\x00\x00moduleNNNtQ.",
    "a persistent id that is short": b"X\x07\x00\x00\x00storage\x85Q.",
    "a persistent id of another type": b"(X\x07\x00\x00\x00storageX\x01\x00\x00\x00aX\x01\x00\x00\x000NK\x01tQ.",
    "a tensor of no storage": GLOBAL_REBUILD + b"(NK\x00))tR.",
    "a tensor with no arguments": GLOBAL_REBUILD + b")R.",
    "a dictionary of a number": b"ccollections\nOrderedDict\nK\x01\x85R.",
    "a size that is no tuple": b"ctorch\nSize\nK\x01\x85R.",
    "bytes of another encoding": b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.",
    "a list as key": b"}]Ns.",
    "a tuple of lists as key": b"}]\x85Ns.",
    "an odd number of items": b"}(K\x01u.",
    "appends to a dictionary": b"}Na.",
    "appends nothing to nothing": b"(e.",
    "sets items of a list": b"]NNs.",
    "tuples of nothing": b"\x87.",
    "marks without end": b"(" * 1000 + b".",
    "nothing": b".",
    "ends nowhere": b"}",
    "a memo that was never written": b"h\x07.",
    "a memo of negative index": b"Np-1\n.",
    "text longer than the file": b"X\xff\xff\xff\x7fa.",
    "bytes longer than any file": b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fa.",
    "a bytearray longer than any file": b"\x96\xff\xff\xff\xff\xff\xff\xff\x0fa.",
    "a number longer than the file": b"\x8b\xff\xff\xff\x7fa.",
    "text that is no UTF-8": b"X\x01\x00\x00\x00\xff.",
    "a list in itself": b"]q\x00h\x00a.",
    "lists in lists": b"]" * 100_000 + b"a" * 99_999 + b".",
    "tuples in tuples": b")" + b"\x85" * 100_000 + b".",
    "tuples in tuples as key": b"})" + b"\x85" * 100_000 + b"Ns.",
    "tuples in tuples in a set": b"\x8f()" + b"\x85" * 100_000 + b"\x90.",
    "the same tuple twice in a tuple in a tuple": b")" + b"q\x00h\x00\x86" * 60 + b".",
    "the same tuple twice in a tuple as key": b"})" + b"q\x00h\x00\x86" * 60 + b"Ns.",
    "the same tuple twice in a tuple in a set": b"\x8f()" + b"q\x00h\x00\x86" * 60 + b"\x90.",
    "text of sixteen gigabytes": b"\x8d\x00\x00\x00\x00\x04\x00\x00\x00a.",
    "bytes of sixteen gigabytes": b"\x8e\x00\x00\x00\x00\x04\x00\x00\x00a.",
    "the same list twice in a list in a list": b"]" + b"q\x00]h\x00ah\x00a" * 60 + b".",
}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_programs_that_torch_never_writes(tmp_path, monkeypatch, layout, name):
    monkeypatch.setattr("ddim_jax.weights.torch_file._MAX_VALUES", 10_000)
    write_program(tmp_path / "w.pth", b"\x80\x02" + PROGRAMS[name], layout)
    refusal(tmp_path / "w.pth")


def test_a_memo_of_huge_index_takes_no_memory(tmp_path):
    """Python's own unpickler makes room for all indices below."""
    write_program(tmp_path / "w.pth", b"\x80\x02K\x07r\xff\xff\xff\xffj\xff\xff\xff\xff.", "zip")
    assert read_torch_file(tmp_path / "w.pth") == 7


VALUES = np.arange(6, dtype=np.float32)
VIEWS = {
    "beyond the end": (1, (6,), (1,)),
    "beyond the end by stride": (0, (2,), (6,)),
    "offset beyond the end": (6, (), ()),
    "huge offset": (2**62, (1,), (1,)),
    "huge size": (0, (2**40,), (1,)),
    "huge size of equal elements": (0, (2**40,), (0,)),
    "huge product of sizes": (0, (2**20,) * 5, (0,) * 5),
    "sizes that overflow": (0, (2**62, 4), (0, 0)),
    "an empty tensor with huge sizes": (0, (0, 2**62, 2**62), (0, 0, 0)),
    "huge stride": (0, (2,), (2**62,)),
    "negative offset": (-1, (1,), (1,)),
    "negative size": (0, (-1,), (1,)),
    "negative stride": (5, (6,), (-1,)),
    "more strides than sizes": (0, (6,), (1, 1)),
    "fewer strides than sizes": (0, (2, 3), (1,)),
    "many dimensions": (0, (1,) * 33, (1,) * 33),
    "a size that is no number": (0, ("6",), (1,)),
    "a size that is a truth value": (0, (True,), (1,)),
    "sizes that are a list": (0, [6], (1,)),
    "an offset that is a fraction": (0.0, (6,), (1,)),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_that_do_not_fit_their_storage(tmp_path, layout, view):
    write(tmp_path / "w.pth", [Tensor(Storage("0", "FloatStorage", VALUES), *VIEWS[view])], layout)
    assert "damaged" in refusal(tmp_path / "w.pth")


def test_a_stride_that_is_never_taken_may_be_anything(tmp_path):
    write(tmp_path / "w.pth", [Tensor(Storage("0", "FloatStorage", VALUES), 2, (1, 3), (2**70, 1))], "zip")
    np.testing.assert_array_equal(read_torch_file(tmp_path / "w.pth")[0], [[2, 3, 4]])


class Claim(np.ndarray):
    """A storage that claims to have more elements than it has."""

    def __len__(self):
        return 2**60


@pytest.mark.parametrize("layout", LAYOUTS)
def test_storages_longer_than_the_file(tmp_path, layout):
    storage = Storage("0", "FloatStorage", VALUES.view(Claim))
    write(tmp_path / "w.pth", [Tensor(storage, 0, (6,), (1,))], layout)
    assert "damaged" in refusal(tmp_path / "w.pth")


def test_old_storages_that_are_missing_or_unknown(tmp_path):
    path = tmp_path / "w.pth"
    write(path, [tensor("7", "FloatStorage", VALUES)], "old")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"\x80\x02]q\x00X\x01\x00\x00\x007q\x01a.", b"\x80\x02]q\x00."))
    assert "damaged" in refusal(path)
    path.write_bytes(content.replace(b"X\x01\x00\x00\x007q\x01a.", b"X\x01\x00\x00\x008q\x01a."))
    assert "damaged" in refusal(path)


def test_a_view_of_a_storage_in_the_old_layout(tmp_path):
    """Before PyTorch 0.4 a storage could itself be a part of another: (key, first element, length)."""
    program = io.BytesIO()
    pickler = TorchPickler(program, "old")
    pickler.persistent_id = lambda obj: (
        ("storage", Named("torch.cuda", "FloatStorage"), "0", "cuda:0", 6, ("1", 2, 3)) if obj == "STORAGE" else None
    )
    pickler.dump([Tensor("STORAGE", 1, (2,), (1,))])
    write_program(tmp_path / "w.pth", program.getvalue(), "old", {"0": VALUES})
    np.testing.assert_array_equal(read_torch_file(tmp_path / "w.pth")[0], [3, 4])


def test_compressed_and_overlapping_records_are_refused(tmp_path):
    path, bomb = tmp_path / "w.pth", tmp_path / "bomb.pth"
    write(path, [tensor(str(key), "FloatStorage", np.zeros(10_000, np.float32)) for key in range(3)], "zip")
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in whole.namelist():
            archive.writestr(name, whole.read(name))
    assert "compressed" in refusal(bomb)
    with zipfile.ZipFile(path, "a") as archive:
        first = archive.getinfo("model/data/0")
        for key in (1, 2):
            archive.getinfo(f"model/data/{key}").header_offset = first.header_offset
        archive.comment = b"written anew"
    refusal(path)


# --- PyTorch itself -----------------------------------------------------------------------------


def saved_by_torch(torch, path, layout):
    """Saves a model, its optimiser and odd tensors after a step of training."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten())
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4, amsgrad=True)
    model(torch.randn(2, 3, 5, 5)).square().sum().backward()
    optimizer.step()
    base = torch.randn(6, 5)
    odd = {
        "transposed": base.T,
        "part": base[1:4, ::2],
        "windows": base.flatten().unfold(0, 4, 3),
        "expanded": base[:1].expand(7, 5),
        "parameter": torch.nn.Parameter(base),
        "empty": torch.empty(0, 3),
        "shape": base.shape,
        "dtype": torch.float16,
        "scalar": torch.tensor(3.5),
        **{
            str(dtype): torch.tensor([1, 0, 1]).to(dtype)
            for dtype in (
                *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
                *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
            )
        },
    }
    saved = [model.state_dict(), optimizer.state_dict(), 3, 17, {f"module.{n}": p for n, p in model.named_parameters()}]
    saved.append(odd)
    torch.save(saved, path, _use_new_zipfile_serialization=layout == "zip")
    return saved


def assert_same(torch, read, saved):
    if isinstance(saved, torch.Tensor):
        assert str(read.dtype) == str(saved.dtype).removeprefix("torch.")
        values = saved.detach().float() if saved.dtype == torch.bfloat16 else saved.detach()
        assert read.shape == tuple(saved.shape)
        np.testing.assert_array_equal(read.astype(values.numpy().dtype), values.numpy())
    elif isinstance(saved, dict):
        assert list(read) == list(saved)
        for name in saved:
            assert_same(torch, read[name], saved[name])
    elif isinstance(saved, list | tuple):
        assert len(read) == len(saved)
        for ours, theirs in zip(read, saved, strict=True):
            assert_same(torch, ours, theirs)
    else:
        assert read == (str(saved) if isinstance(saved, torch.dtype) else saved)


@pytest.mark.parity
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_torch_saves_is_what_we_read(tmp_path, layout):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pth"
    saved = saved_by_torch(torch, path, layout)
    assert_same(torch, read_torch_file(path), saved)


@pytest.mark.parity
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_torch_saves_cut_anywhere_is_refused(tmp_path, layout):
    torch = pytest.importorskip("torch")
    whole, cut = tmp_path / "whole.pth", tmp_path / "cut.pth"
    torch.save({"a": torch.ones(2, 3).T, "b": [torch.zeros(2)]}, whole, _use_new_zipfile_serialization=layout == "zip")
    content = whole.read_bytes()
    for length in range(len(content)):
        cut.write_bytes(content[:length])
        refusal(cut)
    assert read_torch_file(whole)["a"].shape == (3, 2)


@pytest.mark.parity
def test_a_torchscript_archive_and_a_whole_module_are_named(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pt"
    torch.save(torch.nn.Linear(2, 2), path)
    assert "foreign class torch.nn.modules.linear.Linear" in refusal(path)
    with warnings.catch_warnings(action="ignore"):
        torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    assert "TorchScript" in refusal(path)


LONG_LIST = b"](" + b"K\x01K\x02\x86" * 50_000 + b"eq\x00ccollections\nOrderedDict\nq\x01"
EQUAL_HASHES = b"".join(b"\x8a\x0a" + (i * (2**61 - 1)).to_bytes(10, "little") + b"N" for i in range(1, 20_000))

ENDLESS = {
    "instructions": b"N" * 20_000_000 + b".",
    "copies of a list": LONG_LIST + b"h\x01h\x00\x85R" * 100_000 + b".",
    "copies of a text": b"X\x00\x00\x10\x00" + b"a" * 2**20 + b"q\x00c_codecs\nencode\nq\x01"
    + b"h\x01h\x00X\x06\x00\x00\x00latin1\x86R" * 10_000 + b".",
    "values": b"]" + b"q\x00]h\x00ah\x00a" * 60 + b".",
    "keys of equal hashes": b"}(" + EQUAL_HASHES + b"u.",
    "complex keys": b"}cbuiltins\ncomplex\nG" + bytes(8) + b"G" + bytes(8) + b"\x86RNs.",
    "looks at a long key": b"(" + b"K\x01" * 50_000 + b"tq\x00}" + b"h\x00Ns" * 100_000 + b".",
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ENDLESS)
def test_programs_without_end_are_refused_soon(tmp_path, layout, name):
    """They would take hours, or all memory; the bound is far from both, so that a busy machine passes too."""
    write_program(tmp_path / "w.pth", b"\x80\x02" + ENDLESS[name], layout)
    started = time.process_time()
    refusal(tmp_path / "w.pth")
    assert time.process_time() - started < 30


def test_an_encrypted_archive_is_named(tmp_path):
    write(tmp_path / "w.pth", {"w": np.zeros(3)}, "zip")
    data = bytearray((tmp_path / "w.pth").read_bytes())
    for start, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(start)
        while at >= 0:
            data[at + offset] |= 1
            at = data.find(start, at + 4)
    (tmp_path / "w.pth").write_bytes(data)
    assert "is an encrypted zip archive" in refusal(tmp_path / "w.pth")
