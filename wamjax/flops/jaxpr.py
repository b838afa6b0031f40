"""An independent FLOP count: walk the jaxpr of any function and add up its matrix products.

Serves as the referee of the closed forms and as the source of truth where there is none. Same convention: one
multiply-add is 2 FLOPs; matrix products and convolutions only. Scans are multiplied by their length, recomputation
(``jax.checkpoint``) is counted because it is executed, and dead code is removed first because it is not.

A construct whose cost cannot be known from the jaxpr (a loop without a static trip count, a kernel without a declared
cost, a branch whose sides differ and whose shares are not declared) is refused with a ``ValueError`` that names it;
nothing is skipped silently. How code declares such a cost is in ``flops.declared``.
``compiled.cost_analysis()`` is no substitute: it ignores scan lengths and masks.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.extend import core as jex_core
from jax.interpreters import partial_eval

from wamjax.flops import layers
from wamjax.flops.declared import find_branch_shares, find_kernel_flops

# Call-like primitives: parameter that holds the body executed exactly once per call.
_CALLS = {
    "jit": "jaxpr",
    "remat2": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "eval_jaxpr": "call_jaxpr",  # what closed_call became in jax 0.12
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
# Parts of the names of primitives that multiply matrices out of the jaxpr's sight: hand-written and foreign kernels,
# library attention, scaled and sparse products. Their cost must be declared.
_OPAQUE = ("pallas_call", "ffi_call", "custom_call", "mosaic", "triton", "attention", "matmul", "dot", "rnn_")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProductRecord:
    """One matrix product of a jaxpr.

    Attributes:
      primitive: Name of the JAX primitive (or ``pallas_call:<kernel>``).
      scope: Name stack, outermost first, as ``jax.named_scope`` and the transforms wrote it.
      operands: Shapes of the two operands, as text.
      flops: FLOPs of one execution.
      executions: How often it runs: product of the lengths of the scans and mesh axes around it.
    """

    primitive: str
    scope: str
    operands: str
    flops: int
    executions: int

    @property
    def total(self) -> int:
        """FLOPs of all executions."""
        return self.flops * self.executions


@dataclasses.dataclass(frozen=True, kw_only=True)
class JaxprCount:
    """Matrix products found in a jaxpr, in program order."""

    records: tuple[ProductRecord, ...]

    @property
    def total(self) -> int:
        """FLOPs of everything that runs."""
        return sum(record.total for record in self.records)

    @property
    def by_primitive(self) -> dict[str, int]:
        """FLOPs by JAX primitive."""
        return self._grouped(lambda record: record.primitive)

    @property
    def by_scope(self) -> dict[str, int]:
        """FLOPs by name stack."""
        return self._grouped(lambda record: record.scope)

    def matching(self, part: str) -> int:
        """FLOPs of the records whose name stack contains ``part``."""
        return sum(record.total for record in self.records if part in record.scope)

    def _grouped(self, key: Callable[[ProductRecord], str]) -> dict[str, int]:
        groups: collections.Counter[str] = collections.Counter()
        for record in self.records:
            groups[key(record)] += record.total
        return dict(groups)


def trace_flops(
    function: Callable[..., Any],
    *args: Any,
    trip_counts: Mapping[str, int] | None = None,
    kernels: Mapping[str, int] | None = None,
) -> JaxprCount:
    """Counts the matrix products that ``function(*args)`` executes, without running it.

    Args:
      function: Anything ``jax.make_jaxpr`` can trace; ``jax.grad`` of a loss counts forward and backward.
      *args: Arrays or ``jax.ShapeDtypeStruct``.
      trip_counts: Trips of ``while`` loops that hold products, by the name of a ``jax.named_scope`` around the loop.
      kernels: FLOPs of one call of an opaque kernel, by kernel name; overrides a cost the kernel declares itself.

    Raises:
      ValueError: A cost cannot be known (see the module's docstring); the message names the construct.
    """
    return count_jaxpr(jax.make_jaxpr(function)(*args), trip_counts=trip_counts, kernels=kernels)


def count_jaxpr(
    jaxpr: Any,
    *,
    trip_counts: Mapping[str, int] | None = None,
    kernels: Mapping[str, int] | None = None,
) -> JaxprCount:
    """Counts the matrix products of a jaxpr (open or closed). Arguments and errors as ``trace_flops``."""
    opened = getattr(jaxpr, "jaxpr", jaxpr)
    # Dead code first: a recomputed forward whose result nobody reads is in the jaxpr but never runs.
    live, _ = partial_eval.dce_jaxpr(opened, [True] * len(opened.outvars))
    walker = _Walker(dict(trip_counts or {}), dict(kernels or {}))
    walker.walk(live, times=1, scope="")
    return JaxprCount(records=tuple(walker.records))


class _Walker:
    """Depth-first walk that carries how often the current body runs and the name stack around it."""

    def __init__(self, trip_counts: dict[str, int], kernels: dict[str, int]) -> None:
        self.trip_counts = trip_counts
        self.kernels = kernels
        self.records: list[ProductRecord] = []

    def walk(self, jaxpr: Any, *, times: int, scope: str) -> None:
        """Appends the products of ``jaxpr``, each executed ``times`` times."""
        for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
            name, inner = eqn.primitive.name, _join(scope, str(eqn.source_info.name_stack))
            if name in _PRODUCTS:
                self._record(name, inner, eqn, _PRODUCTS[name](eqn), times)
            elif any(part in name for part in _OPAQUE):
                self._kernel(name, inner, eqn, times)
            elif name == "scan":
                self.walk(eqn.params["jaxpr"], times=times * eqn.params["length"], scope=inner)
            elif name == "while":
                self._while(eqn, times, inner)
            elif name == "cond":
                self._cond(eqn, times, inner)
            elif name == "shard_map":
                self.walk(eqn.params["jaxpr"], times=times * _num_shards(eqn), scope=inner)
            elif name in _CALLS and _CALLS[name] in eqn.params:
                self.walk(eqn.params[_CALLS[name]], times=times, scope=inner)
            else:
                self._other(name, eqn, inner)

    def _record(self, name: str, scope: str, eqn: Any, flops: int, times: int) -> None:
        operands = " x ".join(str(tuple(v.aval.shape)) for v in eqn.invars[:2])
        self.records.append(
            ProductRecord(primitive=name, scope=scope, operands=operands, flops=flops, executions=times)
        )

    def _kernel(self, name: str, scope: str, eqn: Any, times: int) -> None:
        kernel = str(eqn.params.get("name") or eqn.params.get("target_name") or name)
        declared = getattr(eqn.params.get("cost_estimate"), "flops", None)
        if declared is None and (said := find_kernel_flops(scope)) is not None:
            declared = said.of(kernel)
        flops = self.kernels.get(kernel, declared)
        if flops is None:
            raise ValueError(
                f"kernel {kernel!r} ({name}, at {scope or 'top level'!r}) declares no cost: give its FLOPs per call in "
                f"kernels={{{kernel!r}: ...}}, or a cost_estimate or flops.declared.kernel_flops where it is called"
            )
        self._record(f"{name}:{kernel}", scope, eqn, int(flops), times)

    def _while(self, eqn: Any, times: int, scope: str) -> None:
        body = self._count(eqn.params["body_jaxpr"], scope)
        condition = self._count(eqn.params["cond_jaxpr"], scope)
        if not body and not condition:
            return
        known = [trips for name, trips in self.trip_counts.items() if name in scope.split("/")]
        if len(known) != 1:
            raise ValueError(
                f"a while loop at {scope or 'top level'!r} holds matrix products and its trip count is not static: "
                "wrap it in jax.named_scope(NAME) and give trip_counts={NAME: trips}, or use a loop with static bounds"
            )
        self.walk(eqn.params["body_jaxpr"], times=times * known[0], scope=scope)
        # The condition is evaluated once more than the body.
        self.walk(eqn.params["cond_jaxpr"], times=times * (known[0] + 1), scope=scope)

    def _cond(self, eqn: Any, times: int, scope: str) -> None:
        branches = eqn.params["branches"]
        costs = [self._count(branch, scope) for branch in branches]
        if len(set(costs)) == 1:
            self.walk(branches[0], times=times, scope=scope)
            return
        shares = find_branch_shares(scope)
        if shares is None or len(shares) != len(branches) or times % sum(shares):
            raise ValueError(
                f"the branches of a cond at {scope or 'top level'!r} cost {costs} FLOPs: which one runs is not known "
                "before it runs; count the branches apart, or declare how many devices take which "
                "(flops.declared.branch_shares)"
            )
        for branch, share in zip(branches, shares, strict=True):
            self.walk(branch, times=times * share // sum(shares), scope=scope)

    def _other(self, name: str, eqn: Any, scope: str) -> None:
        """Passes over elementwise work; refuses an unknown primitive that hides products in a nested jaxpr."""
        for nested in jex_core.jaxprs_in_params(eqn.params):
            flops = self._count(nested, scope)
            if flops:
                raise ValueError(
                    f"primitive {name!r} at {scope or 'top level'!r} holds {flops} FLOPs in a nested program and is "
                    "not known to the counter: add it to wamjax/flops/jaxpr.py"
                )

    def _count(self, jaxpr: Any, scope: str) -> int:
        walker = _Walker(self.trip_counts, self.kernels)
        walker.walk(jaxpr, times=1, scope=scope)
        return sum(record.total for record in walker.records)


def _join(outer: str, inner: str) -> str:
    return f"{outer}/{inner}" if outer and inner else outer or inner


def _num_shards(eqn: Any) -> int:
    """Devices that each run the body of a ``shard_map``: the product of its manual mesh axes."""
    mesh = eqn.params["mesh"]
    axes = eqn.params.get("newly_manual_axes", eqn.params.get("manual_axes", mesh.axis_names))
    return math.prod(mesh.shape[axis] for axis in axes)


def _dot_general(eqn: Any) -> int:
    (contracting, _), _ = eqn.params["dimension_numbers"]
    lhs, out = eqn.invars[0].aval, eqn.outvars[0].aval
    return 2 * math.prod(out.shape) * math.prod(lhs.shape[dim] for dim in contracting)


def _ragged_dot_general(eqn: Any) -> int:
    """Every row belongs to one group, so the products are those of one dense matrix: ``2 |lhs| free(rhs)``.

    Exact when the group sizes, which are data, add up to all rows; otherwise the upper bound.
    """
    lhs, rhs = eqn.invars[0].aval, eqn.invars[1].aval
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (_, contracting), (_, batch) = numbers.dot_dimension_numbers
    taken = {*contracting, *batch, *numbers.rhs_group_dimensions}
    free = math.prod(size for dim, size in enumerate(rhs.shape) if dim not in taken)
    return 2 * math.prod(lhs.shape) * free


def _conv_general_dilated(eqn: Any) -> int:
    params = eqn.params
    lhs, rhs = eqn.invars[0].aval.shape, eqn.invars[1].aval.shape
    lhs_spec, rhs_spec, out_spec = params["dimension_numbers"]
    out = eqn.outvars[0].aval.shape
    # A kernel holds the input channels of one group; batch groups (seen in weight gradients) split the batch instead.
    one_sample = layers.conv(
        [lhs[dim] for dim in lhs_spec[2:]],
        [rhs[dim] for dim in rhs_spec[2:]],
        in_channels=rhs[rhs_spec[1]],
        out_channels=out[out_spec[1]],
        strides=params["window_strides"],
        padding=params["padding"],
        input_dilation=params["lhs_dilation"],
        kernel_dilation=params["rhs_dilation"],
    )
    return out[out_spec[0]] * one_sample


_PRODUCTS: dict[str, Callable[[Any], int]] = {
    "dot_general": _dot_general,
    "ragged_dot_general": _ragged_dot_general,
    "conv_general_dilated": _conv_general_dilated,
}
