import collections
import itertools

import jax
import numpy as np
import pytest

from tests.planning.exchange_program import COMPILED, CONTEXT, FSDP, LAYERS, WIDTH, exchange_step
from wamjax.config.schema import ParallelConfig
from wamjax.parallel.mesh import build_mesh
from wamjax.planning.collectives import (
    Collective,
    Phase,
    find_events,
    list_collectives,
    name_axes,
    tabulate,
)
from wamjax.planning.device_groups import parse_groups
from wamjax.planning.hlo import HloError, Instruction, parse_module
from wamjax.planning.loops import visit_computations

MESH = {"data": 1, "fsdp": FSDP, "context": CONTEXT, "tensor": 1}
# What jax calls an exchange, what HLO calls it.
KINDS = {
    "all_gather": "all-gather",
    "all_to_all": "all-to-all",
    "reduce_scatter": "reduce-scatter",
    "psum": "all-reduce",
    "psum_invariant": "all-reduce",
}
GENERATIONS = sorted(path.stem for path in COMPILED.glob("*.hlo"))


def compiled(generation: str):
    return parse_module((COMPILED / f"{generation}.hlo").read_text())


def instruction(attributes: str) -> Instruction:
    return Instruction("x", "all-gather", (), (), f", channel_id=1, {attributes}, dimensions={{1}}", False)


def groups_of(axes: tuple[str, ...], shape: dict[str, int]) -> list[tuple[int, ...]]:
    """Devices that agree in all other axes, found by looking at every device."""
    names = list(shape)
    groups = collections.defaultdict(list)
    for device, place in enumerate(itertools.product(*map(range, shape.values()))):
        groups[tuple(c for name, c in zip(names, place, strict=True) if name not in axes)].append(device)
    return [tuple(group) for group in groups.values()]


def collective(kind: str, groups: list[tuple[int, ...]]) -> Collective:
    return Collective(kind=kind, num_bytes=8, groups=tuple(groups), shape="", op_name="", name="")


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_axes_of_groups_equal_brute_force_over_the_mesh(count: int) -> None:
    shape = {"data": 2, "fsdp": 4, "context": 3, "tensor": 2}
    for axes in itertools.combinations(shape, count):
        groups = groups_of(axes, shape)
        assert name_axes(collective("all-gather", groups), shape) == "+".join(axes)
        shuffled = [tuple(reversed(group)) for group in reversed(groups)]
        assert name_axes(collective("all-to-all", shuffled), shape) == "+".join(axes)


def test_axis_of_size_one_is_never_named() -> None:
    groups = groups_of(("data", "fsdp"), MESH)
    assert name_axes(collective("all-reduce", groups), MESH) == "fsdp"


def test_groups_over_half_an_axis_say_so() -> None:
    assert name_axes(collective("all-reduce", [(0, 4), (2, 6), (1, 5), (3, 7)]), MESH) == "fsdp (part)"


def test_permute_is_named_by_the_axes_it_crosses() -> None:
    ring = [(0, 1), (1, 0), (2, 3), (3, 2), (4, 5), (5, 4), (6, 7), (7, 6)]
    assert name_axes(collective("collective-permute", ring), MESH) == "context"
    shift = [(device, (device + CONTEXT) % 8) for device in range(6)]  # a line: the last does not send
    assert name_axes(collective("collective-permute", shift), MESH) == "fsdp"


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ("replica_groups={{0,2},{1,3}}", [(0, 2), (1, 3)]),
        ("replica_groups={}", [(0, 1, 2, 3)]),
        ("replica_groups=[2,2]<=[4]", [(0, 1), (2, 3)]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [(0, 2), (1, 3)]),
        ("source_target_pairs={{0,1},{1,0}}", [(0, 1), (1, 0)]),
        ("replica_groups=mesh['axis_0'=4] {'axis_0'}", [(0, 1, 2, 3)]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}", [(0, 1), (2, 3)]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['a'=1,'b'=2,'c'=2] {'a','c'}", [(0, 1), (2, 3)]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=(0,2,1,3) {'b'}", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", [(0, 2), (1, 3)]),
    ],
)
def test_groups_are_read_in_every_notation(attributes: str, expected: list[tuple[int, ...]]) -> None:
    assert parse_groups(instruction(attributes), 4) == tuple(expected)


def test_groups_over_a_part_of_an_axis_are_its_devices() -> None:
    # 'a' of 8 is 2 x 2 x 2; the second of them runs over 0, 2.
    groups = parse_groups(instruction("replica_groups=mesh['a'=8] {'a':(2)2}"), 8)
    assert groups == ((0, 2), (1, 3), (4, 6), (5, 7))
    apart = parse_groups(instruction("replica_groups=mesh['a'=8] {'a':(1)2,'a':(4)2}"), 8)
    assert apart == ((0, 1, 4, 5), (2, 3, 6, 7))


def test_axes_of_groups_of_a_mesh_are_that_meshs() -> None:
    # As libtpu 0.0.51 writes an exchange over fsdp of 32 x 8 devices: not one over all 256.
    groups = parse_groups(instruction("replica_groups=mesh['axis_0'=32,'axis_1'=8] {'axis_0'}"), 256)
    assert name_axes(collective("all-gather", list(groups)), {"data": 1, "fsdp": 32, "context": 8}) == "fsdp"


def test_groups_in_an_unknown_notation_are_refused_not_guessed() -> None:
    with pytest.raises(HloError, match=r"x: replica_groups=ring\(4\) is in no notation"):
        parse_groups(instruction("replica_groups=ring(4)"), 4)


def test_iota_groups_of_a_mesh_axis_equal_the_mesh() -> None:
    # 64 devices, fsdp 16 x context 4: groups over fsdp, as XLA writes them for large meshes.
    groups = parse_groups(instruction("replica_groups=[4,16]<=[16,4]T(1,0)"), 64)
    assert sorted(groups) == sorted(map(tuple, np.arange(64).reshape(16, 4).T.tolist()))
    assert name_axes(collective("all-gather", list(groups)), {"fsdp": 16, "context": 4}) == "fsdp"


def count_exchanges(jaxpr, times: int = 1) -> collections.Counter:
    """Exchanges of a jaxpr by HLO kind, scans multiplied: independent of anything XLA writes."""
    counts = collections.Counter()
    for equation in jaxpr.eqns:
        if kind := KINDS.get(equation.primitive.name):
            # One psum of several arrays is one all-reduce; XLA may also join several of one kind and group.
            counts[kind] += times
        inner = times * equation.params.get("length", 1) if equation.primitive.name == "scan" else times
        for value in equation.params.values():
            for closed in value if isinstance(value, tuple | list) else [value]:
                if equation.primitive.name != "pallas_call" and hasattr(closed, "eqns"):
                    counts += count_exchanges(closed, inner)
                elif equation.primitive.name != "pallas_call" and hasattr(closed, "jaxpr"):
                    counts += count_exchanges(closed.jaxpr, inner)
    return counts


@pytest.mark.parametrize("generation", GENERATIONS)
def test_inventory_of_a_compiled_step_equals_its_jaxpr(generation: str) -> None:
    mesh = build_mesh(ParallelConfig(data=1, fsdp=FSDP, context=CONTEXT, tensor=1), jax.devices())
    step, arguments = exchange_step(mesh)
    expected = count_exchanges(step.trace(*arguments).jaxpr.jaxpr)
    table = tabulate(list_collectives(compiled(generation), MESH))
    counted = {kind: sum(cell["count"] for cell in by_axes.values()) for kind, by_axes in table.items()}
    assert counted == dict(expected)
    assert counted["all-gather"] == 2 * LAYERS


@pytest.mark.parametrize("generation", GENERATIONS)
def test_bytes_of_a_compiled_step_equal_a_hand_count(generation: str) -> None:
    table = tabulate(list_collectives(compiled(generation), MESH))
    gathered = 2 * LAYERS * WIDTH * WIDTH * 2  # two weights a layer, bf16
    assert table["all-gather"] == {"fsdp": {"count": 2 * LAYERS, "bytes": gathered}}
    assert table["reduce-scatter"] == {"fsdp": {"count": 2 * LAYERS, "bytes": gathered}}
    assert table["all-reduce"]["context"]["bytes"] == 2 * gathered // FSDP  # float32 shards of the gradient
    assert table["all-reduce"]["fsdp+context"] == {"count": 1, "bytes": 4}
    assert list(table["all-to-all"]) == ["context"]


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_start_has_its_done_in_the_same_computation(generation: str) -> None:
    module, num_starts = compiled(generation), 0
    for computation, *_ in visit_computations(module)[0]:
        events = find_events(module, computation, 8).values()
        starts = [event.key for event in events if event.phase is Phase.START]
        dones = [event.key for event in events if event.phase is Phase.DONE]
        assert sorted(starts) == sorted(dones)
        assert len(set(starts)) == len(starts)
        num_starts += len(starts)
    assert num_starts, "no asynchronous collective: make the example larger"


def test_gather_carried_on_by_products_is_counted_once() -> None:
    # v5e: a start fusion, a product that carries the gather on, a done fusion, each with the all-gather in it.
    text = (COMPILED / "v5e.hlo").read_text()
    assert "AsyncCollectiveStart" in text
    assert text.count(" all-gather(") > len(
        [1 for use in list_collectives(parse_module(text), MESH) if use.collective.kind == "all-gather"]
    )


def test_where_a_collective_comes_from_is_kept() -> None:
    gathers = [u for u in list_collectives(compiled("v5p"), MESH) if u.collective.kind == "all-gather"]
    assert all(use.collective.op_name.endswith("all_gather") and use.depth == 1 for use in gathers)
