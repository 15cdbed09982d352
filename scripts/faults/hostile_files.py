"""Files that somebody made to do harm: each is refused in one line, within a second, and takes no memory."""

import functools
import io
import json
import os
import pathlib
import select
import socket
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from ddim_jax.files import write_whole
from faults.trial import TINY, BrokenPromiseError, Trial, command, expect, expect_success

_REPOSITORY = pathlib.Path(__file__).parent.parent.parent

# Of a processor's time, and by the clock of a machine that does other things too.
_CPU_SECONDS = 1.0
_CLOCK_SECONDS = 30.0
_MOST_BYTES = 2**29

Make = Callable[[pathlib.Path], None]


# --- the process that reads ---------------------------------------------------------------------


@functools.cache
def _process() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "scripts.faults.hostile_reader"],
        cwd=_REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def _ask(reader: str, path: pathlib.Path) -> dict[str, Any]:
    process = _process()
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps([reader, str(path)]) + "\n")
    process.stdin.flush()
    # It first imports the package.
    deadline = time.monotonic() + (_CLOCK_SECONDS if process.pid in _started else 300)
    _started.add(process.pid)
    while time.monotonic() < deadline:
        if select.select([process.stdout], [], [], 1)[0]:
            line = process.stdout.readline()
            if line.startswith("answer:"):
                return json.loads(line.removeprefix("answer:"))
            if not line:
                break
    process.kill()
    status = process.wait()
    _process.cache_clear()
    raise BrokenPromiseError(f"no answer: the process that reads it hangs or ended with {status}")


_started: set[int] = set()


def _refused(reader: str, make: Make, name: str = "hostile") -> Callable[[pathlib.Path], None]:
    def run(folder: pathlib.Path) -> None:
        path = folder / name
        make(path)
        answer = _ask(reader, path)
        line = answer["line"]
        expect(answer["came"] == "refused", f"{answer['came']}: {line}")
        expect("\n" not in line.strip() and len(line) < 2000 and line.isprintable(), f"no clear line: {line!r:.500}")
        expect(answer["seconds"] < _CPU_SECONDS, f"took {answer['seconds']:.1f} s: {line}")
        expect(answer["bytes"] < _MOST_BYTES, f"took {answer['bytes'] / 2**20:.0f} MiB: {line}")

    return run


# --- no files -----------------------------------------------------------------------------------


def _sparse(path: pathlib.Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


def _socket(path: pathlib.Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # paths of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


_NO_FILES: dict[str, Make] = {
    "a pipe": lambda path: os.mkfifo(path),
    "a link to an endless device": lambda path: path.symlink_to("/dev/zero"),
    "a link to a terminal": lambda path: path.symlink_to("/dev/tty"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a socket": _socket,
    "a terabyte of nothing": _sparse,
}


def _in_folder(make: Make) -> Make:
    def made(path: pathlib.Path) -> None:
        path.mkdir()
        make(path / "image.png")

    return made


# --- archives -----------------------------------------------------------------------------------


def _header(text: str, version: bytes = b"\x01\x00") -> bytes:
    encoded = text.encode() + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H" if version[0] == 1 else "<I", len(encoded)) + encoded


def _array(shape: str = "(4,)", descr: str = "'<f4'", data: bytes = bytes(16), **other: Any) -> bytes:
    return _header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}", **other) + data


def _archive(member: bytes, method: int = zipfile.ZIP_STORED, change: Callable[[bytes], bytes] = bytes) -> Make:
    """An ``.npz`` whose arrays, of all names that readers look for, are this."""

    def make(path: pathlib.Path) -> None:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as archive:
            for name in ("arr_0", "mu", "sigma", "params/conv_in/kernel"):
                archive.writestr(f"{name}.npy", member)
        path.write_bytes(change(file.getvalue()))

    return make


def _patched(offset_in_local: int, offset_in_directory: int, value: bytes) -> Callable[[bytes], bytes]:
    """Writes the same field into all headers of an archive, of members and of the directory."""

    def change(data: bytes) -> bytes:
        changed = bytearray(data)
        for signature, offset in ((b"PK\x03\x04", offset_in_local), (b"PK\x01\x02", offset_in_directory)):
            at = data.find(signature)
            while at >= 0:
                changed[at + offset : at + offset + len(value)] = value
                at = data.find(signature, at + 4)
        return bytes(changed)

    return change


def _bomb(path: pathlib.Path) -> None:
    """Four gigabytes of zeros in four megabytes."""
    size = 2**32 - 2**20
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = _array(f"({size},)", "'|u1'", b"")
    piece = bytes(2**24)
    # The archive is never unpacked so far that its checksum would be asked for.
    packed = packer.compress(head) + b"".join(packer.compress(piece) for _ in range(16)) + packer.flush()
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("arr_0.npy", "mu.npy", "sigma.npy"):
            archive.writestr(name, packed)
    data = bytearray(path.read_bytes())
    change = _patched(8, 10, struct.pack("<H", zipfile.ZIP_DEFLATED))
    data = bytearray(change(bytes(data)))
    unpacked = struct.pack("<I", min(len(packed) * 1000, 2**32 - 1))
    path.write_bytes(_patched(22, 24, unpacked)(bytes(data)))


_SHAPES = ("(1000000000000,)", "(1000000, 1000000, 1000000)", "(9223372036854775807,)", "(18446744073709551616, 2)")
_ODD_SHAPES = ("(-1,)", "(-4, -1)", f"({'1, ' * 60})", "(0, 1000000000000000, 1000000000000000)", "4", "'4'", "(4.0,)")
_DTYPES = (
    "'|O'",
    "'<U0'",
    "'|V0'",
    "[('a', '|O')]",
    "[('a', '<f4')]",
    "'<f99'",
    "'no'",
    "None",
    "('<f4', (1000000000,))",
)

_ARCHIVES: dict[str, Make] = {
    **{f"an array of shape {shape}": _archive(_array(shape)) for shape in _SHAPES},
    **{f"an array of shape {shape:.20}": _archive(_array(shape)) for shape in _ODD_SHAPES},
    **{f"an array of dtype {dtype}": _archive(_array(descr=dtype)) for dtype in _DTYPES},
    "a header that is a program": _archive(_header("__import__('os').system('touch harm')") + bytes(16)),
    "a header of brackets": _archive(_header("(" * 9000) + bytes(16)),
    "a header of a megabyte": _archive(_header(" " * 2**20, b"\x02\x00") + bytes(16)),
    "a header of another version": _archive(_array(version=b"\x09\x00")),
    "a header of four gigabytes": _archive(b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}"),
    "no header": _archive(b"nothing"),
    "an empty member": _archive(b""),
    "a pickle": _archive(b"cos\nsystem\n(S'touch harm'\ntR."),
    "bad deflate": _archive(_array(data=os.urandom(16)), change=_patched(8, 10, b"\x08\x00")),
    "members packed by bzip2": _archive(_array(), zipfile.ZIP_BZIP2),
    "members packed by LZMA": _archive(_array(), zipfile.ZIP_LZMA),
    "an unknown method": _archive(_array(), change=_patched(8, 10, b"\x63\x00")),
    "encrypted members": _archive(_array(), change=_patched(6, 8, b"\x01\x00")),
    "a wrong checksum": _archive(_array(), change=_patched(14, 16, b"\x00\x00\x00\x01")),
    "members that claim four gigabytes": _archive(_array(), change=_patched(22, 24, b"\xfe\xff\xff\xff")),
    "members that are packed to four gigabytes": _archive(_array(), change=_patched(18, 20, b"\xfe\xff\xff\xff")),
    "members beyond the file": _archive(_array(), change=lambda data: _patched(99, 42, b"\xfe\xff\xff\x7f")(data)),
    "half an archive": _archive(_array(), change=lambda data: data[: len(data) // 2]),
    "the end of an archive": _archive(_array(), change=lambda data: data[-22:]),
    "a bomb": _bomb,
}


# --- PyTorch's files ----------------------------------------------------------------------------

_ORDERED = b"ccollections\nOrderedDict\n"
_TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def _number(value: int) -> bytes:
    encoded = value.to_bytes(10, "little")
    return b"\x8a" + bytes([len(encoded)]) + encoded


def _storage(length: bytes = b"K\x04") -> bytes:
    return b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text("0") + _text("cpu") + length + b"tQ"


def _tensor(offset: bytes, size: bytes, stride: bytes, storage: bytes | None = None) -> bytes:
    arguments = (storage or _storage()) + offset + size + stride + b"\x89" + _ORDERED + b")R"
    return b"}" + _text("w") + _TENSOR + b"(" + arguments + b"tRs."


_EQUAL_HASHES = b"".join(_number(i * (2**61 - 1)) + b"N" for i in range(1, 60_000))
_LONG_LIST = b"](" + b"K\x01K\x02\x86" * 50_000 + b"eq\x00"

# What a pickle does, after its first two bytes.
_PROGRAMS: dict[str, bytes] = {
    "calls a shell": b"cos\nsystem\n" + _text("touch harm") + b"\x85R.",
    "evaluates": b"cbuiltins\neval\n" + _text("__import__('os').system('touch harm')") + b"\x85R.",
    "opens a file": b"cbuiltins\nopen\n" + _text("harm") + _text("w") + b"\x86R.",
    "names by the stack": _text("os") + _text("system") + b"\x93" + _text("touch harm") + b"\x85R.",
    "names a method of a class": _text("collections") + _text("OrderedDict.fromkeys") + b"\x93.",
    "makes an instance": b"(S'touch harm'\nios\nsystem\n.",
    "makes an object": b"cos\nsystem\n)\x81.",
    "a registered extension": b"\x82\x01.",
    "a name with a terminal's codes": b"cos\x1b[2J\nsy\x07stem\n.",
    "a function of PyTorch": b"ctorch.hub\nload\n" + _text("x") + b"\x85R.",
    "half a million instructions": b"N" * 600_000 + b".",
    "twenty million instructions": b"N" * 20_000_000 + b".",
    "ten million empty lists": b"]" * 10_000_000 + b".",
    "lists that hold one another twice": b"]" + b"q\x00]h\x00ah\x00a" * 60 + b".",
    "a list in itself": b"]q\x00h\x00a.",
    "lists in lists": b"]" * 100_000 + b"a" * 99_999 + b".",
    "tuples in tuples as key": b"})" + b"\x85" * 100_000 + b"Ns.",
    "tuples twice in tuples as key": b"})" + b"q\x00h\x00\x86" * 60 + b"Ns.",
    "keys of equal hashes": b"}(" + _EQUAL_HASHES + b"u.",
    "a long key again and again": b"(" + b"K\x01" * 50_000 + b"tq\x00}" + b"h\x00Ns" * 100_000 + b".",
    "a long list called again and again": _LONG_LIST + _ORDERED + b"q\x01" + b"h\x01h\x00\x85R" * 100_000 + b".",
    "a long text again and again": _text("a" * 2_000_000) + b"q\x00c_codecs\nencode\nq\x01"
    + (b"h\x01h\x00" + _text("latin1") + b"\x86R") * 10_000 + b".",
    "marks without end": b"(" * 1_000_000 + b".",
    "a memo of huge index": b"Nr\xff\xff\xff\xff.",
    "text longer than the file": b"X\xff\xff\xff\x7fa.",
    "bytes longer than any file": b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fa.",
    "a number longer than the file": b"\x8b\xff\xff\xff\x7fa.",
    "a frame longer than the file": b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "a number of many digits": b"I" + b"9" * 1_000_000 + b"\n.",
    "text that is no UTF-8": b"X\x01\x00\x00\x00\xff.",
    "nothing": b".",
    "no end": b"}",
    "an unknown instruction": b"\xff.",
    "a tensor of a billion elements": _tensor(b"K\x00", b"J\x00\xca\x9a\x3b\x85", b"K\x01\x85"),
    "a tensor shown a billion times": _tensor(b"K\x00", b"J\x00\xca\x9a\x3b\x85", b"K\x00\x85"),
    "a tensor of many axes": _tensor(b"K\x00", b"(" + b"K\x01" * 99 + b"t", b"(" + b"K\x01" * 99 + b"t"),
    "a tensor before its storage": _tensor(b"J\xff\xff\xff\xff", b"K\x04\x85", b"K\x01\x85"),
    "a tensor beyond its storage": _tensor(b"K\x04", b"K\x04\x85", b"K\x01\x85"),
    "a storage of a terabyte": _tensor(b"K\x00", b"K\x04\x85", b"K\x01\x85", _storage(_number(2**40))),
    "a storage of negative length": _tensor(b"K\x00", b"K\x04\x85", b"K\x01\x85", _storage(b"J\xff\xff\xff\xff")),
}  # fmt: skip


def _torch_zip(program: bytes, change: Callable[[bytes], bytes] = bytes, method: int = zipfile.ZIP_STORED) -> Make:
    def make(path: pathlib.Path) -> None:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as archive:
            archive.writestr("w/data.pkl", b"\x80\x02" + program)
            archive.writestr("w/data/0", bytes(16))
        path.write_bytes(change(file.getvalue()))

    return make


def _torch_old(program: bytes) -> Make:
    magic = b"\x80\x02\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little") + b"."
    after = b"\x80\x02](X\x01\x00\x00\x000e." + struct.pack("<q", 4) + bytes(16)
    return lambda path: _write(path, magic + b"\x80\x02M\xe9\x03." + b"\x80\x02}." + b"\x80\x02" + program + after)


def _write(path: pathlib.Path, data: bytes) -> None:
    path.write_bytes(data)


def _many_members(path: pathlib.Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(20_000):
            archive.writestr(f"w/data/{i}", b"")


_GOOD = _tensor(b"K\x00", b"K\x04\x85", b"K\x01\x85")
_TORCH_ARCHIVES: dict[str, Make] = {
    "a compressed archive": _torch_zip(_GOOD, method=zipfile.ZIP_DEFLATED),
    "an encrypted archive": _torch_zip(_GOOD, _patched(6, 8, b"\x01\x00")),
    "a wrong checksum": _torch_zip(_GOOD, _patched(14, 16, b"\x00\x00\x00\x01")),
    "records that claim four gigabytes": _torch_zip(_GOOD, _patched(22, 24, b"\xfe\xff\xff\xff")),
    "half an archive": _torch_zip(_GOOD, lambda data: data[: len(data) // 2]),
    "twenty thousand records": _many_members,
}


# --- other files --------------------------------------------------------------------------------


def _safetensors(header: bytes, length: int | None = None, data: bytes = bytes(16)) -> Make:
    said = len(header) if length is None else length
    return lambda path: _write(path, struct.pack("<Q", said) + header + data)


def _described(shape: str, offsets: str, dtype: str = "F32") -> bytes:
    return f'{{"w": {{"dtype": "{dtype}", "shape": {shape}, "data_offsets": {offsets}}}}}'.encode()


_SAFETENSORS: dict[str, Make] = {
    "a header of an exabyte": _safetensors(_described("[4]", "[0, 16]"), 2**60),
    "a header of four gigabytes": _safetensors(_described("[4]", "[0, 16]"), 2**32),
    "a shape of a trillion": _safetensors(_described("[1000000000000]", "[0, 16]")),
    "a shape beyond all numbers": _safetensors(_described("[9223372036854775807, 9223372036854775807]", "[0, 16]")),
    "a negative shape": _safetensors(_described("[-4]", "[0, 16]")),
    "offsets beyond the file": _safetensors(_described("[1000000000000]", "[0, 4000000000000]")),
    "offsets backwards": _safetensors(_described("[4]", "[16, 0]")),
    "an unknown dtype": _safetensors(_described("[4]", "[0, 16]", "F33")),
    "lists in lists": _safetensors(b'{"w": ' + b"[" * 100_000),
    "no JSON": _safetensors(b"{nothing"),
    "no UTF-8": _safetensors(b'{"\xff": 1}'),
    "another kind of JSON": _safetensors(b'{"w": 1}'),
}


def _png(width: int, height: int, data: bytes = b"", more: bytes = b"") -> Make:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return lambda path: _write(path, b"\x89PNG\r\n\x1a\n" + header + more + chunk(b"IDAT", data) + chunk(b"IEND", b""))


_IMAGES: dict[str, Make] = {
    "a picture of four gigapixels": _png(65_535, 65_535, zlib.compress(bytes(1000))),
    "a picture of 2^31 columns": _png(2**31 - 1, 1, zlib.compress(bytes(1000))),
    "a picture of no pixels": _png(0, 0),
    "bad deflate": _png(8, 8, os.urandom(100)),
    "pixels that are missing": _png(8, 8, zlib.compress(bytes(10))),
    "a chunk of four gigabytes": _png(8, 8, more=b"\xff\xff\xff\xfftEXt"),
    "a program": lambda path: _write(path, b"#!/bin/sh\ntouch harm\n"),
    "a drawing program": lambda path: _write(path, b"%!PS-Adobe-3.0\n%%BoundingBox: 0 0 8 8\n(harm) run\n"),
    "nothing": lambda path: _write(path, b""),
}

_FOLDER_FILES: dict[str, bytes] = {
    "lists in lists": b"[" * 100_000,
    "a number of 5,000 digits": b'{"sample_size": ' + b"9" * 5000 + b"}",
    "no settings": b"[]",
    "another kind": b'{"_class_name": 3, "sample_size": [[]], "block_out_channels": {"a": "b"}}',
    "NUL": bytes(1000),
}


def _diffusers(config: bytes) -> Make:
    def make(path: pathlib.Path) -> None:
        path.mkdir()
        (path / "config.json").write_bytes(config)
        _safetensors(_described("[4]", "[0, 16]"))(path / "diffusion_pytorch_model.safetensors")

    return make


def _index_elsewhere(path: pathlib.Path) -> None:
    path.mkdir()
    (path / "config.json").write_text('{"sample_size": 8}')
    index = {"weight_map": {"w": "../../../../etc/passwd"}}
    (path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def _pipe_in_folder(path: pathlib.Path) -> None:
    path.mkdir()
    os.mkfifo(path / "config.json")
    _safetensors(_described("[4]", "[0, 16]"))(path / "diffusion_pytorch_model.safetensors")


# --- links and caches ---------------------------------------------------------------------------


def _link_is_replaced(folder: pathlib.Path) -> None:
    other, link = folder / "other", folder / "config.json"
    other.write_text("mine")
    link.symlink_to(other)
    write_whole(link, "new")
    expect(other.read_text() == "mine", "the file that a link led to was overwritten")
    expect(not link.is_symlink() and link.read_text() == "new", "the link was not replaced")


def _links_of_a_workdir(folder: pathlib.Path) -> None:
    workdir, other = folder / "run", folder / "other"
    workdir.mkdir()
    names = ("config.json.partial", ".config.json.partial", "metrics.jsonl")
    for name in names:
        (workdir / name).symlink_to(other)
    expect_success(command(*TINY, f"--workdir={workdir}", "--config.train.steps=2"))
    expect(not other.exists(), "training wrote through a link of its workdir")
    expect((workdir / "metrics.jsonl").is_file(), "no metrics were written")


def _cache(make: Callable[[pathlib.Path], pathlib.Path], trusted: bool) -> Callable[[pathlib.Path], None]:
    def run(folder: pathlib.Path) -> None:
        folder.chmod(0o755)
        answer = _ask("cache", make(folder))
        expect(answer["line"] == str(trusted), f"is_trusted said {answer['line']}")

    return run


def _folder(mode: int, *more: str, owner: int | None = None, above: int = 0o755) -> Callable[..., pathlib.Path]:
    def make(folder: pathlib.Path) -> pathlib.Path:
        parent = folder / "above"
        parent.mkdir()
        (parent / "cache").mkdir()
        (parent / "cache").chmod(mode)
        parent.chmod(above)
        if owner is not None:
            os.chown(parent / "cache", owner, -1)
        return parent.joinpath("cache", *more)

    return make


def _others_programs_are_not_run(folder: pathlib.Path) -> None:
    cache = folder / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    environment = {"DDIM_JAX_CACHE": str(folder / "own"), "JAX_COMPILATION_CACHE_DIR": str(cache)}
    result = command(*TINY, f"--workdir={folder / 'run'}", "--config.train.steps=1", environment=environment)
    expect_success(result)
    expect("is writable by all" in result.output and not list(cache.iterdir()), f"the cache was used: {result.output}")


_CACHES: dict[str, tuple[Callable[..., pathlib.Path], bool]] = {
    "the user's own": (_folder(0o755), True),
    "one that is still to be made": (_folder(0o755, "not", "there"), True),
    "one in a sticky folder of all": (_folder(0o755, above=0o1777), True),
    "one that all can write": (_folder(0o777), False),
    "a sticky one that all can write": (_folder(0o1777), False),
    "one to be made where all can write": (_folder(0o777, "not", "there"), False),
    "one in a folder that all can write": (_folder(0o755, above=0o777), False),
}


def _all() -> Iterator[Trial]:
    networks = ("inception", "dinov2")
    for reader in ("weights", "torch file", "safetensors", "npz", "images", "reference", "eval.reference", *networks):
        for what, make in _NO_FILES.items():
            yield Trial(f"{reader}: {what}", _refused(reader, make))
    for reader in ("mask", "first image"):
        for what, make in (_NO_FILES | _IMAGES).items():
            yield Trial(f"{reader}: {what}", _refused(reader, make, "image.png"))
    for what, make in (_NO_FILES | _IMAGES).items():
        yield Trial(f"folder: {what}", _refused("folder", _in_folder(make)))
    for reader in ("npz", "images", "reference", "exported npz"):
        for what, make in _ARCHIVES.items():
            yield Trial(f"{reader}: {what}", _refused(reader, make, "hostile.npz"))
    for what, program in _PROGRAMS.items():
        yield Trial(f"weights: a pickle: {what}", _refused("weights", _torch_zip(program)))
        yield Trial(f"weights: an old pickle: {what}", _refused("torch file", _torch_old(program)))
    for what, make in _TORCH_ARCHIVES.items():
        yield Trial(f"weights: {what}", _refused("weights", make))
    for what, make in _SAFETENSORS.items():
        yield Trial(f"safetensors: {what}", _refused("weights", make))
    for what, config in _FOLDER_FILES.items():
        yield Trial(f"a folder of diffusers: {what}", _refused("weights", _diffusers(config)))
    yield Trial("a folder of diffusers: an index of files elsewhere", _refused("weights", _index_elsewhere))
    yield Trial("a folder of diffusers: a pipe", _refused("weights", _pipe_in_folder))
    for what, (make, trusted) in _CACHES.items():
        yield Trial(f"a cache: {what}", _cache(make, trusted))
    if os.getuid() == 0:
        yield Trial("a cache: somebody else's", _cache(_folder(0o755, owner=12345), False))
    yield Trial("a link in the place of config.json", _link_is_replaced)
    yield Trial("links in a workdir", _links_of_a_workdir)
    yield Trial("a cache of compiled programs that all can write", _others_programs_are_not_run)


# A few of each kind.
_SHORT = (
    "weights: a pipe",
    "mask: a link to an endless device",
    "folder: a pipe",
    "images: a terabyte of nothing",
    "npz: an array of shape (1000000000000,)",
    "npz: a bomb",
    "npz: encrypted members",
    "reference: bad deflate",
    "exported npz: an unknown method",
    "weights: a pickle: calls a shell",
    "weights: a pickle: twenty million instructions",
    "weights: a pickle: keys of equal hashes",
    "safetensors: a header of an exabyte",
    "a cache: one that all can write",
    "a link in the place of config.json",
)


def trials(long: bool) -> Iterator[Trial]:
    """All kinds of files for all readers, or a few of each."""
    yield from (trial for trial in _all() if long or trial.name in _SHORT)
