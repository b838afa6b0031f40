import dataclasses

import numpy as np
import pytest

from tests.planning.exchange_program import COMPILED, KERNEL_FLOPS, LAYERS
from wamjax.planning.chips import BY_PREFIX
from wamjax.planning.estimate import StepTime, estimate_step
from wamjax.planning.hlo import parse_module
from wamjax.planning.ici import Torus

# 1 GHz and 1 GB/s: a cycle is a nanosecond, a byte too.
CHIP = dataclasses.replace(
    BY_PREFIX["v5p"],
    clock_hz=1e9,
    streaming_bytes_per_s=1e9,
    host_bytes_per_s=1e9,
    forward_fraction=0.5,
    backward_fraction=0.25,
)
RING = Torus(coords=np.arange(4)[:, None], sizes=(4,), wraps=(True,), link_bytes_per_s=1e9)
NANO = 1e-9
CYCLES = 'backend_config={"window_config":{"estimated_cycles":"%d"}}'

HEAD = """HloModule m, is_scheduled=true

%product (p.0: f32[10]) -> f32[10] {
  %p.0 = f32[10] parameter(0)
  ROOT %conv = f32[10] convolution(%p.0, %p.0)
}

%pointwise (p.1: f32[10]) -> f32[10] {
  %p.1 = f32[10] parameter(0)
  ROOT %double = f32[10] add(%p.1, %p.1)
}

"""
MATMUL = "f32[10] fusion(%x), kind=kOutput, calls=%product, " + CYCLES % 1000
OTHER = "f32[10] fusion(%x), kind=kLoop, calls=%pointwise, " + CYCLES % 500  # 40 bytes in, 40 out
# Gathers 800 bytes over a ring of four: 600 of them arrive, over two links: 300 ns.
GATHER = "replica_groups={{0,1,2,3}}, dimensions={0}"


def estimate(*lines: str, computations: str = "") -> StepTime:
    """The estimate of an entry computation of these instructions."""
    body = "\n".join(f"  %{line}" for line in lines)
    return parse_and_estimate(f"{HEAD}{computations}ENTRY %main (x: f32[10]) -> f32[10] {{\n"
                              f"  %x = f32[10] parameter(0)\n  %w = f32[50] broadcast(%x)\n{body}\n}}\n")  # fmt: skip


def parse_and_estimate(text: str) -> StepTime:
    return estimate_step(parse_module(text.replace("\n  %last", "\n  ROOT %last")), CHIP, RING)


def test_compute_is_cycles_over_the_clock() -> None:
    step = estimate(f"a = {MATMUL}", f"b = {OTHER}", f"last = {OTHER}")
    assert step.matmul == pytest.approx(1000 * NANO)
    assert step.other == pytest.approx(2 * 500 * NANO)
    assert step.other_roof == pytest.approx(2 * 80 * NANO)
    assert step.overlapped == step.scheduled == step.exposed == pytest.approx(2000 * NANO)
    assert step.scheduled_roof == pytest.approx(1160 * NANO)


def test_synchronous_collective_stops_compute() -> None:
    step = estimate(f"a = {MATMUL}", f"g = f32[200] all-gather(%w), {GATHER}", f"last = {MATMUL}")
    assert (step.ici, step.ici_synchronous) == (pytest.approx(300 * NANO), pytest.approx(300 * NANO))
    assert step.scheduled == step.exposed == pytest.approx(2300 * NANO)
    assert step.overlapped == pytest.approx(2000 * NANO)


def start(name: str) -> str:
    return f"{name} = (f32[50], f32[200]) all-gather-start(%w), {GATHER}"


def test_asynchronous_collective_hides_behind_compute_between_start_and_done() -> None:
    step = estimate(start("s"), f"a = {MATMUL}", "d = f32[200] all-gather-done(%s)", f"last = {OTHER}")
    assert (step.ici, step.ici_synchronous) == (pytest.approx(300 * NANO), 0.0)
    assert step.scheduled == pytest.approx(1500 * NANO)


def test_asynchronous_collective_with_nothing_between_hides_nothing() -> None:
    step = estimate(start("s"), "d = f32[200] all-gather-done(%s)", f"a = {MATMUL}", f"last = {OTHER}")
    assert step.scheduled == pytest.approx(1800 * NANO)
    assert step.exposed == pytest.approx(1800 * NANO)


def test_links_serve_one_collective_at_a_time() -> None:
    lines = [start(f"s{i}") for i in range(4)] + [f"a = {MATMUL}"]
    lines += [f"d{i} = f32[200] all-gather-done(%s{i})" for i in range(4)] + [f"last = {OTHER}"]
    assert estimate(*lines).scheduled == pytest.approx((4 * 300 + 500) * NANO)


def test_loop_bodies_are_replayed_as_often_as_they_run() -> None:
    loop = f"""%condition (c: (f32[10])) -> pred[] {{
  %c = (f32[10]) parameter(0)
  ROOT %t = pred[] constant(true)
}}

%body (b: (f32[10])) -> (f32[10]) {{
  %b = (f32[10]) parameter(0)
  %x = f32[10] get-tuple-element(%b), index=0
  %w.1 = f32[50] broadcast(%x)
  %s = (f32[50], f32[200]) all-gather-start(%w.1), {GATHER}
  %a = {OTHER}
  %d = f32[200] all-gather-done(%s)
  ROOT %out = (f32[10]) tuple(%a)
}}

"""
    trips = 'backend_config={"known_trip_count":{"n":"7"}}'
    step = estimate("i = (f32[10]) tuple(%x)", f"last = (f32[10]) while(%i), condition=%condition, body=%body, {trips}",
                    computations=loop)  # fmt: skip
    assert (step.other, step.ici) == (pytest.approx(7 * 500 * NANO), pytest.approx(7 * 300 * NANO))
    assert step.scheduled == pytest.approx(7 * 500 * NANO)
    assert step.exposed == pytest.approx(7 * 800 * NANO)


def kernel(name: str, config: str = "", operands: str = "%x") -> str:
    op_name = f'metadata={{op_name="jit(step)/{name}/pallas_call"}}'
    return f'f32[10] custom-call({operands}), custom_call_target="tpu_custom_call", {op_name}{config}'


def test_kernel_is_priced_by_its_own_flops_at_a_fraction_of_the_peak() -> None:
    cost = ', backend_config={"custom_call_config":{"cost_estimate":{"flops":"459000000","bytes_accessed":"0"}}}'
    forward = estimate(f"last = {kernel('attention_fwd', cost)}")
    assert forward.attention == forward.scheduled == pytest.approx(459e6 / (0.5 * 459e12))
    assert forward.kernels == ("attention_fwd",)
    backward = estimate(f"last = {kernel('attention_dkv', cost)}")
    assert backward.attention == pytest.approx(459e6 / (0.25 * 459e12))


@pytest.mark.parametrize(
    ("name", "outputs", "units", "fraction"),
    [
        ("splash_mha_fwd_residuals", "(bf16[4,96,128], f32[4,96,128])", 4, 0.5),
        ("splash_mha_dq_no_residuals", "(bf16[4,96,128])", 6, 0.25),
        ("splash_mha_dkv_no_residuals", "(bf16[4,32,128], bf16[4,32,128])", 8, 0.25),
        ("splash_mha_dkv_no_residuals", "(bf16[2,4,96,128], bf16[4,32,128], bf16[4,32,128])", 10, 0.25),  # fused
    ],
)
def test_splash_kernel_is_priced_by_its_shapes(name: str, outputs: str, units: int, fraction: float) -> None:
    call = kernel(name, operands="%mask, %q, %k, %v").replace("f32[10] custom", f"{outputs} custom")
    step = estimate("mask = s8[1,1,1] copy(%x)", "q = bf16[4,96,128] copy(%x)", "k = bf16[4,32,128] copy(%x)",
                    "v = bf16[4,32,128] copy(%x)", f"last = {call}")  # fmt: skip
    assert step.attention == pytest.approx(units * 4 * 96 * 32 * 128 / (fraction * 459e12))


@pytest.mark.parametrize(("name", "flops", "fraction"), [("splash_mha_fwd", 700, 0.5), ("splash_mha_dkv", 1900, 0.25)])
def test_masked_kernel_is_priced_by_what_its_caller_declared(name: str, flops: int, fraction: float) -> None:
    call = kernel(name, operands="%q, %q").replace("jit(step)/", "jit(step)/kernel_flops_700_1900/vmap(splash)/")
    step = estimate("q = bf16[4,96,128] copy(%x)", f"last = {call}")
    assert step.attention == pytest.approx(flops / (fraction * 459e12))


def test_kernel_without_flops_is_named_not_hidden() -> None:
    step = estimate(f"last = {kernel('mystery')}")
    assert (step.attention, step.unpriced) == (0.0, ("mystery",))


def test_host_transfer_hides_behind_compute_and_moves_the_devices_side() -> None:
    transfer = "(bf16[9,8]{:S(5)}, bf16[1,8]) dynamic-update-slice-start(%h, %row)"
    lines = ['h = bf16[9,8]{:S(5)} custom-call(), custom_call_target="AllocateBuffer"', "row = bf16[1,8] copy(%x)"]
    lines += [
        f"s = {transfer}",
        f"a = {OTHER}",
        "d = bf16[9,8]{:S(5)} dynamic-update-slice-done(%s)",
        f"last = {OTHER}",
    ]
    step = estimate(*lines)
    assert step.host == pytest.approx(16 * NANO)
    assert step.scheduled == pytest.approx(1000 * NANO)


@pytest.mark.parametrize("generation", sorted(path.stem for path in COMPILED.glob("*.hlo")))
def test_bounds_of_a_compiled_step_are_ordered_and_its_kernel_is_priced(generation: str) -> None:
    chip = BY_PREFIX[generation]
    coords = np.array([(i // 4, i // 2 % 2, i % 2) for i in range(8)])[:, : chip.dims]
    place = Torus(
        coords=coords, sizes=(2,) * chip.dims, wraps=(False,) * chip.dims, link_bytes_per_s=chip.link_bytes_per_s
    )
    step = estimate_step(parse_module((COMPILED / f"{generation}.hlo").read_text()), chip, place)
    assert step.overlapped <= step.scheduled <= step.exposed
    assert step.ici_synchronous <= step.ici
    assert step.kernels == ("doubling_fwd",)
    assert step.attention == pytest.approx(LAYERS * KERNEL_FLOPS / (chip.forward_fraction * chip.peak_flops_per_s))
