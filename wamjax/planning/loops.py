"""How often each computation of a module runs in one execution: trip counts of its loops, multiplied.

A loop's count is read from XLA's own note (``known_trip_count``) or found by running the loop's counter: the few
scalar instructions that its condition depends on are evaluated until the condition is false.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from wamjax.planning.hlo import Computation, HloError, Instruction, Module

MAX_TRIPS = 1_000_000  # beyond this the counter is taken for one that never ends

_FORWARDING = ("copy", "bitcast", "convert", "copy-done", "copy-start", "reshape", "optimization-barrier")
_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "minimum": min,
    "maximum": max,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
}
_COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "LT": lambda a, b: a < b,
    "LE": lambda a, b: a <= b,
    "GT": lambda a, b: a > b,
    "GE": lambda a, b: a >= b,
    "EQ": lambda a, b: a == b,
    "NE": lambda a, b: a != b,
}
_LITERALS = {"true": 1, "false": 0}

# (number of the parameter, element of it or None) -> its value, or None where it is not known
Binding = Callable[[int, int | None], int | None]


class Visit(NamedTuple):
    """A computation that runs, and how often.

    Attributes:
      computation: The computation.
      times: Executions per execution of the module.
      depth: Loops around it.
      ways: Of so many branches one is taken at a time: those of the conditionals around it, multiplied.
    """

    computation: Computation
    times: int
    depth: int
    ways: int = 1


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """Returns how often the ``while`` instruction ``loop`` of ``computation`` runs its body; None if unknown."""
    known = loop.backend_config.get("known_trip_count", {}).get("n")
    if known is not None:
        return int(known)
    condition, body = module.called(loop, "condition"), module.called(loop, "body")
    if condition is None or body is None:
        raise HloError(f"{loop.name}: a while without condition or body")
    state: dict[int, int | None] = {}

    def current(parameter: int, element: int | None) -> int | None:
        if element is None:
            return None
        if element not in state:
            state[element] = _evaluate_element(module, computation, loop.operands[0], element, _unknown)
        return state[element]

    _evaluate(module, condition, condition.root.name, current)  # finds the elements the condition reads
    for _ in range(len(loop.arrays)):  # and what those are made of
        before = len(state)
        for element in list(state):
            _evaluate_element(module, body, body.root.name, element, current)
        if len(state) == before:
            break
    for trips in range(MAX_TRIPS):
        goes_on = _evaluate(module, condition, condition.root.name, current)
        if goes_on is None:
            return None
        if not goes_on:
            return trips
        state.update({e: _evaluate_element(module, body, body.root.name, e, current) for e in state})
    return None


def visit_computations(module: Module) -> tuple[list[Visit], list[str]]:
    """Returns the computations that run under control flow, the entry first, and the loops of unknown trip count.

    A loop of unknown count is taken to run once. Every branch of a conditional is visited; ``Visit.ways`` tells.
    """
    unknown: list[str] = []

    def visit(computation: Computation, times: int, depth: int, ways: int) -> Iterator[Visit]:
        yield Visit(computation, times, depth, ways)
        for instruction in computation.instructions:
            if instruction.opcode == "while":
                trips = trip_count(module, computation, instruction)
                if trips is None:
                    unknown.append(instruction.name)
                body = module.called(instruction, "body")
                if body is not None:
                    yield from visit(body, times * (1 if trips is None else trips), depth + 1, ways)
            called = branches(module, instruction)
            for branch in called:
                yield from visit(branch, times, depth, ways * len(called))

    return list(visit(module.entry, 1, 0, 1)), unknown


def branches(module: Module, instruction: Instruction) -> list[Computation]:
    """Returns the computations that a ``call`` or ``conditional`` runs."""
    if instruction.opcode == "call":
        called = module.called(instruction, "to_apply")
        return [called] if called else []
    if instruction.opcode != "conditional":
        return []
    text = instruction.attribute("branch_computations")
    if text is not None:
        return [module.computations[name] for name in re.findall(r"%?([\w.\-]+)", text)]
    called = [module.called(instruction, key) for key in ("true_computation", "false_computation")]
    return [computation for computation in called if computation is not None]


def _unknown(parameter: int, element: int | None) -> int | None:
    return None


def _evaluate(module: Module, computation: Computation, name: str, bind: Binding) -> int | None:
    """Returns the value of the scalar integer instruction ``name``, or None if it depends on what is not known."""
    instruction = computation.by_name[name]
    opcode, operands = instruction.opcode, instruction.operands
    if opcode == "constant":
        return _LITERALS.get(operands[0], _integer(operands[0]))
    if opcode == "parameter":
        return bind(instruction.index, None)
    if opcode == "get-tuple-element":
        return _evaluate_element(module, computation, operands[0], instruction.index, bind)
    if opcode in _FORWARDING:
        return _evaluate(module, computation, operands[0], bind)
    if opcode in ("fusion", "call"):
        called = module.called(instruction, "calls" if opcode == "fusion" else "to_apply")
        return (
            None
            if called is None
            else _evaluate(module, called, called.root.name, _bound(module, computation, operands, bind))
        )
    if opcode not in _ARITHMETIC and opcode != "compare":
        return None
    left, right = (_evaluate(module, computation, operand, bind) for operand in operands)
    if left is None or right is None:
        return None
    if opcode == "compare":
        return int(_COMPARISONS[instruction.attribute("direction") or ""](left, right))
    return _ARITHMETIC[opcode](left, right)


def _evaluate_element(module: Module, computation: Computation, name: str, element: int, bind: Binding) -> int | None:
    """Returns the value of element ``element`` of the tuple ``name``."""
    instruction = computation.by_name[name]
    if instruction.opcode == "tuple":
        return _evaluate(module, computation, instruction.operands[element], bind)
    if instruction.opcode == "parameter":
        return bind(instruction.index, element)
    if instruction.opcode in _FORWARDING:
        return _evaluate_element(module, computation, instruction.operands[0], element, bind)
    if instruction.opcode == "fusion":
        called = module.called(instruction)
        if called is not None and called.root.opcode == "tuple":
            inner = _bound(module, computation, instruction.operands, bind)
            return _evaluate(module, called, called.root.operands[element], inner)
    return None


def _bound(module: Module, computation: Computation, operands: tuple[str, ...], bind: Binding) -> Binding:
    """Returns what the parameters of a called computation hold, given the operands of the call."""

    def inner(parameter: int, element: int | None) -> int | None:
        if element is None:
            return _evaluate(module, computation, operands[parameter], bind)
        return _evaluate_element(module, computation, operands[parameter], element, bind)

    return inner


def _integer(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None
