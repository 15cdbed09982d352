"""The least time that a compiled program can take on a GPU, by what each of its kernels computes, reads and writes.

An instruction takes as long as its multiply-adds at a stated share of the peak, or its bytes at the memory's bandwidth,
whichever is longer; instructions run one after the other. What this leaves out: data that the next kernel finds in the
L2 cache (a GPU can be faster), kernels that reach neither limit, their launches, and gaps between them (it is slower).
"""

import collections
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from benchmarks.machine import Peak

from inspecting.text import COLLECTIVES, Instruction, Line, Program, Shape, called_computations, layer_of, shapes

# What cuBLAS reaches on an H100 in a large product of bfloat16 matrices: 790 of 989 TFLOP/s.
SHARE_OF_PEAK = 0.8

# They move nothing: other instructions read what they name.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while", "call", "conditional"),
    *("partition-id", "replica-id", "opt-barrier"),
}

_CONVOLUTIONS = {
    "__cudnn$convForward": "convolution",
    "__cudnn$convBiasActivationForward": "convolution",
    "__cudnn$convBackwardInput": "convolution, gradient of its input",
    "__cudnn$convBackwardFilter": "convolution, gradient of its kernel",
}

# How a convolution, cuBLAS' product and a fused one say that operands are not to be rounded.
_EXACT = re.compile(r"operand_precision=\{high|\"HIGH(?:EST)?\"|algorithm=dot_f32_f32_f32")

_SLICES = ("dynamic-slice", "slice", "gather")


class Kernel(NamedTuple):
    """What one execution of an instruction costs.

    Attributes:
        instruction: the instruction.
        kind: what it does, for people.
        flop: operations of its convolutions and matrix products.
        dtype: of their operands: ``bfloat16``, ``float32``, or ``exact`` for float32 without a faster stand-in.
        bytes: what it reads and writes.
        seconds: the longer of both.
    """

    instruction: Instruction
    kind: str
    flop: int
    dtype: str
    bytes: int
    seconds: float

    @property
    def layer(self) -> str:
        """The layer that it belongs to."""
        return layer_of(self.instruction)


class Sum(NamedTuple):
    """Kernels together, each as often as it runs.

    Attributes:
        kernels: how many.
        bytes: what they read and write.
        seconds: how long they take at least.
    """

    kernels: int
    bytes: int
    seconds: float


def kernels(hlo: str, peak: Peak, share: float = SHARE_OF_PEAK) -> list[Kernel]:
    """All that a compiled program launches.

    Args:
        hlo: from ``compiled.as_text()``.
        peak: of the device.
        share: of its peak that matrix units reach at best.
    """
    program = Program(hlo)
    return [
        _kernel(program, each, peak, share)
        for each in program.instructions()
        if each.opcode not in _FREE and not each.opcode.endswith("-done")
    ]


def total(chosen: Iterable[Kernel]) -> Sum:
    """Adds kernels up."""
    count, moved, seconds = 0, 0, 0.0
    for each in chosen:
        times = each.instruction.times
        count, moved, seconds = count + times, moved + times * each.bytes, seconds + times * each.seconds
    return Sum(count, moved, seconds)


def by(keys: Sequence[str], found: Sequence[Kernel]) -> dict[str, Sum]:
    """Sums of the kernels that have the same key, the longest first."""
    groups: dict[str, list[Kernel]] = collections.defaultdict(list)
    for key, each in zip(keys, found, strict=True):
        groups[key].append(each)
    sums = {key: total(group) for key, group in groups.items()}
    return dict(sorted(sums.items(), key=lambda item: item[1].seconds, reverse=True))


def is_convolution(kernel: Kernel) -> bool:
    """Whether it is one of cuDNN's convolutions."""
    return kernel.kind in _CONVOLUTIONS.values()


def _kernel(program: Program, each: Instruction, peak: Peak, share: float) -> Kernel:
    lines = list(_lines_inside(program, each))
    flop = _flop(each, lines)
    if any(shape.dtype in ("bf16", "f16") for shape in each.operands):
        dtype = "bfloat16"
    else:
        dtype = (
            "exact" if any(_EXACT.search(text) for text in (each.text, *(line.text for line in lines))) else "float32"
        )
    moved = _bytes(program, each)
    speed = getattr(peak, dtype) * 1e12 * share
    return Kernel(each, _kind(each, lines), flop, dtype, moved, max(flop / speed, moved / (peak.bandwidth * 1e12)))


def _lines_inside(program: Program, each: Instruction) -> Iterator[Line]:
    """What a fusion is made of."""
    if each.opcode not in ("fusion", "async-start"):
        return
    waiting = called_computations(each.text)
    while waiting:
        for line in program.lines(waiting.pop()).values():
            yield line
            if line.opcode == "fusion":
                waiting += called_computations(line.text)


def _target(each: Instruction) -> str:
    found = re.search(r'custom_call_target="([^"]+)"', each.text)
    return found[1] if found else ""


def _kind(each: Instruction, lines: Sequence[Line]) -> str:
    """What an instruction does, for people."""
    target = _target(each)
    inside = {line.opcode for line in lines}
    opcode = each.opcode.removesuffix("-start")
    if opcode in COLLECTIVES:
        return opcode
    if target:
        return _CONVOLUTIONS.get(target, "matrix product, cuBLAS" if target.startswith("__cublas") else target)
    if "dot" in inside or opcode == "dot":
        return "matrix product, Triton"
    if inside & {"reduce", "reduce-window"} or opcode == "reduce":
        return "sums, with what is fused into them"
    if "concatenate" in inside or opcode == "concatenate":
        return "concatenation"
    if opcode in ("copy", "transpose") or "transpose" in inside:
        return "transpositions and copies"
    return "element by element"


def _flop(each: Instruction, lines: Sequence[Line]) -> int:
    """Operations of convolutions and matrix products: a multiplication and an addition are two."""
    target = _target(each)
    if target in _CONVOLUTIONS:
        return _flop_of_convolution(each, target)
    if target.startswith("__cublas"):
        contracted = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', each.text)
        places = re.findall(r"\d+", contracted[1]) if contracted else []
        return _flop_of_product(shapes(each.type)[0], each.operands[0], [int(place) for place in places])
    of_lines = {line.name: line for line in lines}
    flop = 0
    for line in lines:
        if line.opcode == "dot" and line.arguments[0] in of_lines:
            contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line.text)
            places = re.findall(r"\d+", contracted[1]) if contracted else []
            left = shapes(of_lines[line.arguments[0]].type)[0]
            flop += _flop_of_product(shapes(line.type)[0], left, [int(place) for place in places])
    return flop


def _flop_of_product(result: Shape, left: Shape, contracted: Sequence[int]) -> int:
    length = 1
    for place in contracted:
        length *= left.dimensions[place]
    return 2 * result.size * length


def _flop_of_convolution(each: Instruction, target: str) -> int:
    """Each value of the result of the forward convolution is a sum over the kernel, which all three forms share."""
    found = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", each.text)
    result = shapes(each.type)[0]
    if found is None:
        return 0
    if target == "__cudnn$convBackwardInput":
        output, kernel = each.operands[0], each.operands[1]
    elif target == "__cudnn$convBackwardFilter":
        output, kernel = each.operands[1], result
    else:
        output, kernel = result, each.operands[1]
    return 2 * kernel.size * output.size // kernel.dimensions[found[2].index("o")]


def _bytes(program: Program, each: Instruction) -> int:
    """What an instruction reads and writes. A fusion that takes a slice of an array reads no more than the slice."""
    written = shapes(each.type)
    if each.opcode == "custom-call" and len(written) > 1 and len(written[-1].dimensions) == 1:
        written = written[:-1]  # the last is cuDNN's or cuBLAS' workspace
    if each.opcode == "async-start" or each.opcode.removesuffix("-start") in COLLECTIVES:
        return sum(shape.bytes for shape in written)
    read = sum(shape.bytes for shape in each.operands)
    if each.opcode != "fusion":
        return read + sum(shape.bytes for shape in written)
    (called,) = called_computations(each.text)
    lines = program.lines(called)
    read = 0
    for line in lines.values():
        if line.opcode == "parameter":
            read += _bytes_read(lines, line)
    return read + sum(shape.bytes for shape in written)


def _bytes_read(lines: Mapping[str, Line], parameter: Line) -> int:
    """How much of a fusion's parameter it reads: of one that is only sliced, the slices."""
    whole = shapes(parameter.type)
    cut = _values_read(lines, parameter.name)
    size = sum(shape.size for shape in whole)
    return (
        sum(shape.bytes for shape in whole) * min(size, cut) // size
        if cut is not None and size
        else sum(shape.bytes for shape in whole)
    )


def _values_read(lines: Mapping[str, Line], name: str) -> int | None:
    """How many values of an array in a fusion are used, where it is only sliced; None where all are."""
    users = [line for line in lines.values() if name in line.arguments]
    found = 0
    for line in users:
        if line.opcode in _SLICES and line.arguments[0] == name:
            found += sum(shape.size for shape in shapes(line.type))
        elif line.opcode in ("convert", "bitcast"):
            inner = _values_read(lines, line.name)
            if inner is None:
                return None
            found += inner
        else:
            return None
    return found if users else None
