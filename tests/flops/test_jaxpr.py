"""The jaxpr counter against hand counts, XLA's own count of convolutions, and constructs it must refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from wamjax.flops.declared import branch_shares, kernel_flops
from wamjax.flops.jaxpr import count_jaxpr, trace_flops

B, D, F = 8, 16, 64
ONE = 2 * B * D * F  # FLOPs of either matmul of the two-layer network


def two_layers(params, x):
    up, down = params
    return jnp.sum((jnp.tanh(x @ up) @ down) ** 2)


def two_layer_arguments():
    return (jax.ShapeDtypeStruct((D, F), jnp.float32), jax.ShapeDtypeStruct((F, D), jnp.float32)), (
        jax.ShapeDtypeStruct((B, D), jnp.float32)
    )


def remat_step(policy):
    def block(params, x):
        up, down = params
        y = jnp.tanh(x @ up) @ down
        return jnp.sum(jnp.tanh(y) ** 2)

    # With the value: a bare gradient leaves the first forward unread, and dead code is not counted.
    return jax.value_and_grad(jax.checkpoint(block, policy=policy), argnums=(0, 1))


def test_two_matmuls_forward_is_the_hand_count():
    assert trace_flops(two_layers, *two_layer_arguments()).total == 2 * ONE


def test_two_matmuls_gradient_of_weights_and_input_is_three_times_forward():
    assert trace_flops(jax.grad(two_layers, argnums=(0, 1)), *two_layer_arguments()).total == 3 * 2 * ONE


def test_two_matmuls_gradient_of_weights_only_spares_the_input_gradient_of_the_first():
    assert trace_flops(jax.grad(two_layers), *two_layer_arguments()).total == 3 * 2 * ONE - ONE


@pytest.mark.parametrize(
    ("policy", "forwards"),
    [
        (jax.checkpoint_policies.everything_saveable, 3),
        (jax.checkpoint_policies.nothing_saveable, 4),
        (jax.checkpoint_policies.dots_saveable, 3),
    ],
    ids=["everything", "nothing", "dots"],
)
def test_two_matmuls_remat_counts_what_the_policy_recomputes(policy, forwards):
    assert trace_flops(remat_step(policy), *two_layer_arguments()).total == forwards * 2 * ONE


def test_scan_counts_its_length_in_forward_backward_and_remat():
    length = 5
    weights = jax.ShapeDtypeStruct((length, D, D), jnp.float32)
    x = jax.ShapeDtypeStruct((B, D), jnp.float32)
    one = 2 * B * D * D

    def loss(w, x, wrap):
        return jnp.sum(jax.lax.scan(wrap(lambda h, layer: (jnp.tanh(h @ layer), None)), x, w)[0] ** 2)

    plain = functools.partial(loss, wrap=lambda f: f)
    remat = functools.partial(loss, wrap=jax.checkpoint)
    assert trace_flops(plain, weights, x).total == length * one
    assert trace_flops(jax.grad(plain, argnums=(0, 1)), weights, x).total == 3 * length * one
    assert trace_flops(jax.grad(remat, argnums=(0, 1)), weights, x).total == 4 * length * one


def test_nested_scans_multiply():
    def nested(x):
        inner = lambda h, _: (h @ h, None)  # noqa: E731
        return jax.lax.scan(lambda h, _: (jax.lax.scan(inner, h, length=3)[0], None), x, length=7)[0]

    assert trace_flops(nested, jax.ShapeDtypeStruct((4, 4), jnp.float32)).total == 21 * 2 * 4**3


def test_unused_product_is_not_counted():
    def wasteful(x):
        _ = x @ x
        return x + 1

    assert trace_flops(wasteful, jax.ShapeDtypeStruct((4, 4), jnp.float32)).total == 0


def test_unused_forward_inside_a_remat_gradient_is_not_counted():
    # The gradient of sum(x @ w) needs no recomputed product at all: dead code must go before counting.
    loss = jax.checkpoint(lambda w, x: jnp.sum(x @ w))
    count = trace_flops(jax.grad(loss), jnp.ones((4, 5)), jnp.ones((3, 4)))
    assert count.total == 2 * 3 * 4 * 5


def test_batched_products_equal_hand_count_and_keeps_its_scope():
    def attend(q, k, v):
        with jax.named_scope("attention"):
            weights = jax.lax.dot_general(q, k, (((3,), (3,)), ((0, 2), (0, 2))))  # [b k n m]
        with jax.named_scope("values"):
            return jax.lax.dot_general(weights, v, (((3,), (1,)), ((0, 1), (0, 2))))

    q = jax.ShapeDtypeStruct((2, 5, 3, 8), jnp.float32)
    k = jax.ShapeDtypeStruct((2, 7, 3, 8), jnp.float32)
    count = trace_flops(attend, q, k, k)
    product = 2 * 2 * 3 * 5 * 7 * 8
    assert count.total == 2 * product
    assert count.matching("attention") == product
    assert count.by_scope == {"attention": product, "values": product}
    assert count.by_primitive == {"dot_general": 2 * product}


def test_jit_custom_vjp_and_custom_jvp_are_entered_once():
    @jax.custom_vjp
    def product(x):
        return x @ x

    product.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x + x @ g,))

    @jax.custom_jvp
    def square(x):
        return x @ x

    square.defjvps(lambda t, _, x: t @ x + x @ t)
    x = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    one = 2 * 4**3
    assert trace_flops(jax.jit(product), x).total == one
    assert trace_flops(square, x).total == one
    assert trace_flops(jax.value_and_grad(lambda x: product(x).sum()), x).total == 3 * one
    assert trace_flops(jax.value_and_grad(lambda x: square(x).sum()), x).total == 3 * one


def test_shard_map_counts_every_shard():
    devices = np.array(jax.devices())
    mesh = Mesh(devices, ("x",), axis_types=(AxisType.Auto,))
    body = jax.shard_map(lambda a, b: a @ b, mesh=mesh, in_specs=(P("x"), P()), out_specs=P("x"))
    rows = 2 * devices.size
    a, b = jax.ShapeDtypeStruct((rows, 3), jnp.float32), jax.ShapeDtypeStruct((3, 5), jnp.float32)
    assert trace_flops(body, a, b).total == 2 * rows * 3 * 5


def test_sharded_jit_counts_the_global_product():
    mesh = Mesh(np.array(jax.devices()), ("x",), axis_types=(AxisType.Auto,))
    rows = 8 * mesh.size
    a = jax.ShapeDtypeStruct((rows, 3), jnp.float32, sharding=NamedSharding(mesh, P("x")))
    traced = jax.jit(lambda a: a.T @ a).trace(a)
    assert count_jaxpr(traced.jaxpr).total == 2 * 3 * 3 * rows


def test_ragged_dot_and_its_gradients_count_every_row_once():
    def loss(rows, experts):
        return jnp.sum(jax.lax.ragged_dot(rows, experts, jnp.array([2, 4], jnp.int32)) ** 2)

    rows, experts = jnp.ones((6, 4)), jnp.ones((2, 4, 5))
    one = 2 * 6 * 4 * 5
    assert trace_flops(loss, rows, experts).total == one
    assert trace_flops(jax.grad(loss, argnums=(0, 1)), rows, experts).total == 3 * one


CONVOLUTIONS = {
    "padded": {"window_strides": (1, 1), "padding": "SAME"},
    "strided": {"window_strides": (2, 3), "padding": ((1, 1), (0, 2))},
    "dilated": {"window_strides": (1, 2), "padding": "VALID", "rhs_dilation": (2, 1)},
    "transposed": {"window_strides": (1, 1), "padding": ((2, 2), (1, 1)), "lhs_dilation": (2, 3)},
    "grouped": {"window_strides": (2, 1), "padding": "SAME", "feature_group_count": 2},
}


@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_convolution_forward_agrees_with_xla_cost_analysis(options):
    groups = options.get("feature_group_count", 1)
    x, w = jnp.ones((2, 4, 9, 8)), jnp.ones((6, 4 // groups, 3, 2))
    conv = functools.partial(jax.lax.conv_general_dilated, **options)
    analysed = jax.jit(conv).lower(x, w).cost_analysis()
    assert analysed is not None
    assert trace_flops(conv, x, w).total == int(analysed["flops"])


@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_convolution_gradients_cost_exactly_two_more_forwards(options):
    groups = options.get("feature_group_count", 1)
    x, w = jnp.ones((2, 4, 9, 8)), jnp.ones((6, 4 // groups, 3, 2))

    def loss(x, w):
        return jnp.sum(jax.lax.conv_general_dilated(x, w, **options) ** 2)

    forward = trace_flops(loss, x, w).total
    assert trace_flops(jax.grad(loss, argnums=(0, 1)), x, w).total == 3 * forward


def test_fori_loop_with_static_bounds_is_counted_and_a_data_dependent_loop_is_refused():
    x = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    static = lambda x: jax.lax.fori_loop(0, 6, lambda _, h: h @ h, x)  # noqa: E731
    assert trace_flops(static, x).total == 6 * 2 * 4**3

    def dynamic(x):
        with jax.named_scope("solve"):
            return jax.lax.while_loop(lambda h: h[0, 0] < 1, lambda h: h @ h, x)

    with pytest.raises(ValueError, match=r"while loop at 'solve'.*trip_counts"):
        trace_flops(dynamic, x)
    assert trace_flops(dynamic, x, trip_counts={"solve": 9}).total == 9 * 2 * 4**3


def test_while_loop_without_products_is_free():
    count = trace_flops(lambda x: jax.lax.while_loop(lambda h: h < 9, lambda h: h + 1, x), jnp.float32(0))
    assert count.total == 0


def test_cond_with_equal_branches_is_counted_and_with_unequal_ones_refused():
    x = jnp.ones((4, 4))
    equal = lambda p, x: jax.lax.cond(p, lambda x: x @ x, lambda x: x.T @ x, x)  # noqa: E731
    assert trace_flops(equal, True, x).total == 2 * 4**3
    unequal = lambda p, x: jax.lax.cond(p, lambda x: x @ x, lambda x: x, x)  # noqa: E731
    with pytest.raises(ValueError, match=r"branches of a cond .* cost \[0, 128\]"):
        trace_flops(unequal, True, x)


def test_switch_with_declared_shares_counts_each_branch_as_often_as_it_runs():
    mesh = Mesh(np.array(jax.devices()), ("x",), axis_types=(AxisType.Auto,))
    branches = [lambda x: x, lambda x: x @ x, lambda x: x @ x @ x]

    def body(x, shares=(4, 2, 2)):
        with branch_shares(shares):
            return jax.lax.switch(jnp.array([0, 0, 0, 0, 1, 1, 2, 2])[jax.lax.axis_index("x")], branches, x)

    def run(shares):
        part = functools.partial(body, shares=shares)
        return jax.shard_map(part, mesh=mesh, in_specs=P("x"), out_specs=P("x"), check_vma=False)

    x, one = jax.ShapeDtypeStruct((8 * 4, 4), jnp.float32), 2 * 4**3
    assert trace_flops(run((4, 2, 2)), x).total == (2 * 1 + 2 * 2) * one
    gradient = jax.grad(lambda x: run((4, 2, 2))(x).sum())
    # Of x @ x two products, of x @ x @ x four (and x @ x itself, which they read).
    assert trace_flops(gradient, x).total == (2 * 2 + 2 * 5) * one
    for wrong in ((4, 4), (1, 1, 1)):
        with pytest.raises(ValueError, match=r"branches of a cond .* declare how many devices take which"):
            trace_flops(run(wrong), x)


def pallas_product(cost, name="product"):
    from jax.experimental import pallas as pl

    def kernel(a, b, out):
        out[...] = a[...] @ b[...]

    return pl.pallas_call(
        kernel, out_shape=jax.ShapeDtypeStruct((8, 8), jnp.float32), name=name, cost_estimate=cost, interpret=True
    )


def test_pallas_kernel_counts_by_its_declared_cost_only():
    from jax.experimental import pallas as pl

    a = jnp.ones((8, 8))
    cost = pl.CostEstimate(flops=1234, transcendentals=0, bytes_accessed=0)
    assert trace_flops(pallas_product(cost), a, a).total == 1234
    with pytest.raises(ValueError, match=r"kernel 'product' \(pallas_call"):
        trace_flops(pallas_product(None), a, a)
    assert trace_flops(pallas_product(None), a, a, kernels={"product": 77}).total == 77
    assert (
        trace_flops(lambda a: jax.lax.scan(lambda h, _: (pallas_product(cost)(h, h), None), a, length=3)[0], a).total
        == 3702
    )


def test_kernel_declared_by_a_scope_counts_by_the_pass_its_name_says():
    def call(a, name):
        with kernel_flops(100, 250):
            return pallas_product(None, name)(a, a)

    a = jnp.ones((8, 8))
    assert trace_flops(lambda a: call(a, "product"), a).total == 100
    assert trace_flops(lambda a: call(a, "product_dkv"), a).total == 250
    assert trace_flops(lambda a: jax.vmap(lambda a: call(a, "product"))(jnp.stack([a, a])), a).total == 100


def test_product_out_of_the_jaxprs_sight_is_refused_by_name():
    # A sparse product stands for all primitives that multiply without a dot_general in the jaxpr.
    from jax.experimental import sparse

    x = sparse.BCOO.fromdense(jnp.eye(4))
    with pytest.raises(ValueError, match=r"kernel 'bcoo_dot_general' .* declares no cost"):
        trace_flops(lambda y: x @ y, jnp.ones((4, 4)))


def test_unknown_primitive_that_holds_products_is_refused_by_name():
    def callee(x):
        return x @ x

    def unknown(x):
        return jax.lax.custom_linear_solve(callee, x, lambda _, b: b @ b)

    with pytest.raises(ValueError, match=r"primitive 'custom_linear_solve' .* holds 128 FLOPs"):
        trace_flops(unknown, jnp.ones((4, 4)))
