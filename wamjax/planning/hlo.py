"""The text of a compiled (scheduled) XLA module as data: computations, instructions, shapes, called computations.

Owns the grammar and nothing else: what an instruction costs or moves is for other modules to say. In a scheduled
module the order of a computation's instructions is the order in which they run.

Source: the format that ``HloModule::ToString`` prints (openxla/xla, ``xla/hlo/ir/hlo_instruction.cc``).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterator
from typing import Any

# Bits of an element; types of 4 bits and less are packed on TPU. Source: openxla/xla, xla/xla_data.proto.
_ELEMENT_BITS = {
    "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32,
    "s64": 64, "u64": 64, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128, "token": 0,
    "f4e2m1fn": 4, "f8e3m4": 8, "f8e4m3": 8, "f8e4m3fn": 8, "f8e4m3fnuz": 8, "f8e4m3b11fnuz": 8, "f8e5m2": 8,
    "f8e5m2fnuz": 8, "f8e8m0fnu": 8,
}  # fmt: skip

HBM = 0  # memory spaces of a layout: S(1) is on-chip vector memory, S(5) the host's
HOST = 5

_ARRAY = re.compile(r"(?P<dtype>[a-z][a-z0-9]*)\[(?P<dims>[\d,<=]*)\](?:\{(?P<layout>[^{}]*)\})?")
_MEMORY_SPACE = re.compile(r"S\((\d+)\)")
_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = (?P<rest>.*)$", re.DOTALL)
_COMMENT = re.compile(r"/\*index=\d+\*/")
_OPCODE = re.compile(r"\s*(?P<opcode>[a-z][\w\-]*)\(")
_OPERAND = re.compile(r"%([\w.\-]+)")


class HloError(ValueError):
    """The text is not a scheduled HLO module as this parser knows it."""


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of an instruction's result: element type, dims and the memory space it lies in (0 is HBM)."""

    dtype: str
    dims: tuple[int, ...]
    memory_space: int = HBM

    @property
    def num_bytes(self) -> int:
        """Bytes of the elements, without the padding of a tiled layout."""
        return math.ceil(math.prod(self.dims) * _ELEMENT_BITS[self.dtype] / 8)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclasses.dataclass(frozen=True, eq=False)
class Instruction:
    """One instruction.

    Attributes:
      name: Unique in the module.
      opcode: As HLO spells it (``all-gather-start``).
      arrays: The arrays of the result, a (nested) tuple flattened.
      operands: Names of the operands; of a constant or parameter, its literal or number instead.
      attributes: Everything after the operands, as text.
      is_root: Whether it is the computation's result.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def num_bytes(self) -> int:
        """Bytes of the result."""
        return sum(array.num_bytes for array in self.arrays)

    def attribute(self, key: str) -> str | None:
        """Returns the text of a plain attribute (``dimensions={1}`` gives ``{1}``), or None."""
        match = re.search(rf"(?:^|[ ,]){re.escape(key)}=", self.attributes)
        return None if match is None else _balanced(self.attributes, match.end())

    def called(self, key: str) -> str | None:
        """Returns the name of the computation that attribute ``key`` (``calls``, ``body``, ...) points to."""
        text = self.attribute(key)
        return None if text is None else text.removeprefix("%")

    @property
    def index(self) -> int:
        """Which element a ``get-tuple-element`` takes, or which parameter a ``parameter`` is."""
        text = self.operands[0] if self.opcode == "parameter" else self.attribute("index")
        if text is None:
            raise HloError(f"{self.name}: {self.opcode} without an index")
        return int(text)

    @property
    def op_name(self) -> str:
        """Where in the Python program it comes from (``jit(step)/.../dot_general``); empty if the compiler made it."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match[1] if match else ""

    @property
    def target(self) -> str:
        """Target of a custom call, or an empty string."""
        match = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return match[1] if match else ""

    @functools.cached_property
    def backend_config(self) -> dict[str, Any]:
        """What the TPU backend notes: cost estimates, trip counts, kernels. Empty if it notes nothing."""
        start = self.attributes.find("backend_config={")
        if start < 0:
            return {}
        try:
            return json.JSONDecoder().raw_decode(self.attributes, start + len("backend_config="))[0]
        except json.JSONDecodeError as error:
            raise HloError(f"{self.name}: backend_config is not JSON: {error}") from error

    @property
    def estimated_cycles(self) -> int:
        """Cycles of the compiler's own cost model; 0 where it gives none (bitcasts, scalars, waits)."""
        return int(self.backend_config.get("window_config", {}).get("estimated_cycles", 0))


@dataclasses.dataclass(frozen=True, eq=False)
class Computation:
    """A computation: its instructions in the order they run, and by name."""

    name: str
    instructions: tuple[Instruction, ...]

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        """The instructions by name."""
        return {instruction.name: instruction for instruction in self.instructions}

    @functools.cached_property
    def root(self) -> Instruction:
        """The instruction whose value is the computation's."""
        return next(instruction for instruction in self.instructions if instruction.is_root)

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Name of an instruction -> instructions that read it."""
        users: dict[str, list[Instruction]] = {instruction.name: [] for instruction in self.instructions}
        for instruction in self.instructions:
            for operand in dict.fromkeys(instruction.operands):
                if operand in users:
                    users[operand].append(instruction)
        return users

    def operand_arrays(self, instruction: Instruction) -> list[Array]:
        """Returns the arrays that ``instruction`` reads."""
        return [array for name in instruction.operands if name in self.by_name for array in self.by_name[name].arrays]


@dataclasses.dataclass(frozen=True, eq=False)
class Module:
    """A module: computations by name and the one that runs."""

    computations: dict[str, Computation]
    entry: Computation

    def called(self, instruction: Instruction, key: str = "calls") -> Computation | None:
        """Returns the computation that attribute ``key`` of ``instruction`` points to, or None without one."""
        name = instruction.called(key)
        return None if name is None else self.computations[name]

    def nested(self, instruction: Instruction) -> Iterator[Instruction]:
        """Yields the instructions of the fused computation of ``instruction``, those of fusions inside it too."""
        computation = self.called(instruction)
        for inner in computation.instructions if computation else ():
            yield inner
            yield from self.nested(inner)


def parse_module(text: str) -> Module:
    """Returns the module that ``text`` (``compiled.as_text()``, or a dump of XLA) describes.

    Raises:
      HloError: There is no entry computation, or a line is none of HLO's.
    """
    computations: dict[str, Computation] = {}
    entry: Computation | None = None
    name, is_entry, lines = "", False, []
    for line in text.splitlines():
        if not name:
            match = _COMPUTATION.match(line)
            if match:
                name, is_entry, lines = match["name"], match["entry"] is not None, []
        elif line == "}" or line.startswith("}, execution_thread="):  # of another core
            computation = Computation(name, tuple(_parse_instruction(entry_text) for entry_text in lines))
            computations[name] = computation
            entry, name = (computation if is_entry else entry), ""
        elif _INSTRUCTION.match(line):
            lines.append(line)
        elif lines:  # metadata of Pallas kernels is printed over several lines, some of which are a lone brace
            lines[-1] += line
    if entry is None:
        raise HloError("no ENTRY computation in the HLO text")
    return Module(computations, entry)


def parse_arrays(text: str) -> tuple[Array, ...]:
    """Returns the arrays of a shape such as ``(bf16[8,128]{1,0:T(8,128)S(1)}, f32[])``.

    Raises:
      HloError: An element type is unknown.
    """
    arrays = []
    for match in _ARRAY.finditer(text):
        if match["dtype"] not in _ELEMENT_BITS:
            raise HloError(f"unknown element type {match['dtype']!r} in shape {text[:80]!r}")
        space = _MEMORY_SPACE.search(match["layout"] or "")
        dims = tuple(int(dim.removeprefix("<=")) for dim in match["dims"].split(",") if dim)
        arrays.append(Array(match["dtype"], dims, int(space[1]) if space else HBM))
    return tuple(arrays)


def _parse_instruction(line: str) -> Instruction:
    match = _INSTRUCTION.match(_COMMENT.sub("", line))
    if match is None:
        raise HloError(f"not an instruction: {line[:120]!r}")
    rest = match["rest"]
    shape = _balanced(rest, 0) if rest.startswith("(") else rest.split(" ", 1)[0]
    opcode = _OPCODE.match(rest, len(shape))
    if opcode is None:
        raise HloError(f"no opcode in {line[:120]!r}")
    inner = _balanced(rest, opcode.end() - 1)
    is_literal = opcode["opcode"] in ("constant", "parameter")
    return Instruction(
        name=match["name"],
        opcode=opcode["opcode"],
        arrays=parse_arrays(shape),
        operands=(inner[1:-1].strip(),) if is_literal else tuple(_OPERAND.findall(inner)),
        attributes=rest[opcode.end() - 1 + len(inner) :],
        is_root=match["root"] is not None,
    )


def _balanced(text: str, start: int) -> str:
    """Returns ``text`` from ``start`` up to the end of its value: a bracketed group, or up to the next comma."""
    depth, quoted = 0, False
    for position in range(start, len(text)):
        letter = text[position]
        if letter == '"' and text[position - 1] != "\\":
            quoted = not quoted
        elif quoted:
            continue
        elif letter in "({[":
            depth += 1
        elif letter in ")}]":
            depth -= 1
            if depth == 0 and text[start] in "({" and letter in ")}":
                return text[start : position + 1]
        elif letter == "," and depth == 0:
            return text[start:position]
    return text[start:]
