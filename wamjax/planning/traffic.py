"""Bytes that an instruction of a scheduled module moves through HBM, slices and in-place updates counted as such.

A fusion that reads one layer's slice of a stacked array reads the slice, and one that updates a slice in place writes
the slice. Arrays in on-chip memory move nothing here: the copies that fill them are counted.
"""

from __future__ import annotations

from wamjax.planning.hlo import HBM, Array, Computation, Instruction, Module

_SLICES = ("dynamic-slice", "slice")
_SAME = ("bitcast", "reshape", "get-tuple-element")


def hbm_bytes(module: Module, computation: Computation, instruction: Instruction) -> int:
    """Returns the bytes that ``instruction`` reads from and writes to HBM."""
    operands = [computation.by_name[name] for name in instruction.operands if name in computation.by_name]
    if instruction.opcode in _SLICES:
        return 2 * _in_hbm(instruction.arrays)
    if instruction.opcode == "dynamic-update-slice":
        return 2 * _in_hbm(operands[1].arrays)
    called = module.called(instruction) if instruction.opcode == "fusion" else None
    if called is None:
        return sum(_in_hbm(operand.arrays) for operand in operands) + _in_hbm(instruction.arrays)
    parameters = {inner.index: inner for inner in called.instructions if inner.opcode == "parameter"}
    read = sum(
        _read(module, called, parameters[place].name, array)
        for place, operand in enumerate(operands)
        if place in parameters
        for array in operand.arrays[:1]
    )
    return read + _written(module, called, called.root, instruction.arrays)


def _in_hbm(arrays: tuple[Array, ...]) -> int:
    return sum(array.num_bytes for array in arrays if array.memory_space == HBM)


def _read(module: Module, computation: Computation, name: str, array: Array) -> int:
    """Bytes of ``array`` that the users of ``name`` in a fused computation read."""
    if array.memory_space != HBM:
        return 0
    total = 0
    for user in computation.users[name]:
        if user.opcode in _SLICES and user.operands[0] == name:
            total += user.num_bytes
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == name and name not in user.operands[1:]:
            pass  # updated in place
        elif user.opcode in _SAME:
            total += _read(module, computation, user.name, array)
        elif user.opcode == "fusion" and (called := module.called(user)):
            total += sum(
                _read(module, called, inner.name, array)
                for inner in called.instructions
                if inner.opcode == "parameter" and user.operands[inner.index] == name
            )
        else:
            return array.num_bytes
    return min(total, array.num_bytes)


def _written(module: Module, computation: Computation, root: Instruction, arrays: tuple[Array, ...]) -> int:
    """Bytes that a fused computation with result ``root`` writes to HBM; ``arrays`` say where its results lie."""
    if root.opcode == "tuple" and len(root.operands) == len(arrays):
        return sum(
            _written(module, computation, computation.by_name[name], (array,))
            for name, array in zip(root.operands, arrays, strict=True)
        )
    if any(array.memory_space != HBM for array in arrays):
        return _in_hbm(arrays)
    if root.opcode == "dynamic-update-slice":
        return computation.by_name[root.operands[1]].num_bytes
    if root.opcode in _SAME and root.operands[0] in computation.by_name:
        return _written(module, computation, computation.by_name[root.operands[0]], arrays)
    if root.opcode == "fusion" and (called := module.called(root)):
        return _written(module, called, called.root, arrays)
    return _in_hbm(arrays)
