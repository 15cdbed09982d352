"""A compiled program's text: what it executes, how often, and what each instruction reads and writes."""

import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

# Collectives by their names in XLA's language; those that overlap with other work are cut into a start and a wait.
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
_BYTES |= {"s64": 8, "u64": 8, "f64": 8}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_WRAPPER = re.compile(r"\w*\(|(while|body|cond|closed_call|shard_map|checkpoint|rematted_computation|branch_\d+_fun)$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


class Shape(NamedTuple):
    """An array of a program: ``f32[3,3]``.

    Attributes:
        dtype: XLA's name of its type.
        dimensions: its sides.
    """

    dtype: str
    dimensions: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.dimensions)

    @property
    def bytes(self) -> int:
        """Bytes in memory; 0 for what is no array of numbers, such as a token."""
        return self.size * _BYTES.get(self.dtype, 0)


class Instruction(NamedTuple):
    """An instruction of a compiled program that is executed on its own, and not as a part of a fusion.

    Attributes:
        name: its name in the program.
        opcode: what it does: ``fusion``, ``convolution``, ``all-reduce`` ...
        type: shapes of its result.
        source: the operation of the network that it comes from, as JAX names it; empty where XLA made it itself.
        cycles: the compiler's estimate for one execution; 0 where it gives none.
        times: how often it is executed in one run of the program.
        operands: shapes of what it is given, each array once.
        text: the line of the program.
    """

    name: str
    opcode: str
    type: str
    source: str
    cycles: int
    times: int
    operands: tuple[Shape, ...]
    text: str


class Line(NamedTuple):
    """A line of a computation, in pieces.

    Attributes:
        name: of the instruction.
        type: shapes of its result.
        opcode: what it does.
        arguments: names of what it is given.
        text: all of the line.
    """

    name: str
    type: str
    opcode: str
    arguments: tuple[str, ...]
    text: str


class Program:
    """A compiled program, by computations: the entry, loops, fusions."""

    def __init__(self, hlo: str) -> None:
        """Reads the text.

        Args:
            hlo: from ``compiled.as_text()``.
        """
        self._texts: dict[str, list[str]] = {}
        self._entry, current = "", ""
        for line in hlo.splitlines():
            begins = _COMPUTATION.match(line)
            if begins:
                current = begins[2]
                self._texts[current] = []
                self._entry = current if begins[1] else self._entry
            elif current:
                self._texts[current].append(line)

    @functools.cache  # noqa: B019 - a program is read once and thrown away
    def lines(self, computation: str) -> Mapping[str, Line]:
        """The instructions of a computation, by name; none for one that does not exist."""
        found = {}
        for text in self._texts.get(computation, ()):
            parts = _INSTRUCTION.match(text)
            if parts is not None:
                # What follows the brackets of the arguments begins with a comma and names no argument.
                arguments = re.findall(r"%([\w.\-]+)", parts[4].split("), ")[0])
                found[parts[1]] = Line(parts[1], parts[2], parts[3], tuple(dict.fromkeys(arguments)), text)
        return found

    def instructions(self) -> list[Instruction]:
        """All that is executed: the entry, and the bodies of loops and branches. Loops of unknown length count once."""
        return list(self._executed(self._entry, 1))

    def _executed(self, computation: str, times: int) -> Iterator[Instruction]:
        lines = self.lines(computation)
        for line in lines.values():
            source = re.search(r'op_name="([^"]*)"', line.text)
            cycles = re.search(r'"estimated_cycles":"(\d+)"', line.text)
            operands = [shape for name in line.arguments if name in lines for shape in shapes(lines[name].type)]
            yield Instruction(
                line.name, line.opcode, line.type, source[1] if source else "", int(cycles[1]) if cycles else 0,
                times, tuple(operands), line.text,
            )  # fmt: skip
            if line.opcode == "while":
                inner = times * self._loop_length(line.text)
            elif line.opcode in ("call", "conditional"):
                inner = times
            else:
                continue
            for called in called_computations(line.text):
                yield from self._executed(called, inner)

    def _loop_length(self, line: str) -> int:
        """How often a loop runs: as XLA says or, where it does not (TPUs), the bound that ``lax.scan`` counts up to."""
        said = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
        condition = re.search(r"condition=%?([\w.\-]+)", line)
        bounds = [
            int(bound)
            for each in self._texts.get(condition[1] if condition else "", ())
            for bound in re.findall(r" = s32\[\]\S* constant\((\d+)\)", each)
        ]
        return int(said[1]) if said else bounds[0] if len(bounds) == 1 else 1


def called_computations(text: str) -> list[str]:
    """Names of the computations that a line of a program calls."""
    called = re.findall(r"(?:body|condition|to_apply|calls|_computation)=%?([\w.\-]+)", text)
    for branches in re.findall(r"branch_computations=\{([^}]*)\}", text):
        called += re.findall(r"%?([\w.\-]+)", branches)
    return called


def shapes(types: str) -> list[Shape]:
    """The arrays of a result: of ``f32[3,3]{1,0}``, or of a tuple of such."""
    return [
        Shape(dtype, tuple(int(side) for side in sides.split(",") if side)) for dtype, sides in _SHAPE.findall(types)
    ]


class Traffic(NamedTuple):
    """Collectives of one kind in one run of a program.

    Attributes:
        number: how many are executed.
        bytes: bytes of their results on each device.
    """

    number: int
    bytes: int


def collectives(hlo: str) -> dict[str, Traffic]:
    """What crosses the network in one run of a compiled program, by kind; empty on one device."""
    found: dict[str, Traffic] = {}
    for instruction in Program(hlo).instructions():
        kind = instruction.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            before = found.get(kind, Traffic(0, 0))
            size = sum(shape.bytes for shape in shapes(instruction.type))
            found[kind] = Traffic(before.number + instruction.times, before.bytes + instruction.times * size)
    return found


def layer_of(instruction: Instruction) -> str:
    """The kind of layer that an instruction belongs to, with its direction: ``conv``, ``norm, backward`` ..."""
    if not instruction.source:
        return f"({instruction.opcode})"
    # A source looks like jit(_fun)/shard_map/while/body/transpose(jvp(UNet))/up_0_block_1/conv_0/reduce_sum: without
    # what JAX wraps around layers, the last but one names the layer.
    inside = [part for part in instruction.source.split("/") if not _WRAPPER.match(part)]
    layer = re.sub(r"_\d+$", "", inside[-2]) if len(inside) > 1 else "(optimiser, loss, and other)"
    return f"{layer}, backward" if "transpose(" in instruction.source else layer
