"""Every kind of optimizer: against brute force, over the mesh, and which parameters it is for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.tiny import TINY
from wamjax.config.schema import FinetuneConfig, OptimizerConfig, ParallelConfig
from wamjax.errors import ConfigError
from wamjax.nn.lora import adaptable_kernels
from wamjax.objectives.objective import abstract_model, build_objective
from wamjax.parallel.mesh import build_mesh, replicated
from wamjax.parallel.parameters import flatten_params, parameter_axes
from wamjax.parallel.rule_tables import PARAMETER_RULES
from wamjax.parallel.rules import partition_spec
from wamjax.training.digest import path_name
from wamjax.training.optimizer import make_optimizer, optimizer_shardings
from wamjax.training.schedule import make_schedule
from wamjax.training.trainable import split_tree, trained_paths
from wamjax.training.update import apply_gradients, no_skips

# Two stacked layers with a plain, an input-heads and an output-heads kernel; a vector; a matrix that is no layer's.
AXES = {
    "blocks": {
        "up": {"kernel": ("layers", "embed", "mlp"), "bias": ("layers", "mlp")},
        "query": {"kernel": ("layers", "embed", "heads", None)},
        "out_kernel": ("layers", "heads", None, "embed"),
    },
    "patch": {"kernel": (None, "embed")},
}
SIZES = {"layers": 2, "embed": 8, "mlp": 16, "heads": 4, None: 2}
KERNELS = {"blocks.up.kernel": 1, "blocks.query.kernel": 1, "blocks.out_kernel": 2, "patch.kernel": 1}
CONFIG = OptimizerConfig(peak_lr=0.1, warmup_steps=0, weight_decay=0.1, clip_norm=1e6, schedule="constant", b2=0.95)
SCHEDULE = make_schedule(CONFIG, 10)
KINDS = [
    {"kind": "adamw"},
    {"kind": "adamw", "moments_dtype": "bfloat16"},
    {"kind": "muon", "moments_dtype": "bfloat16"},
    {"kind": "sgd", "moments_dtype": "bfloat16"},
]


def is_names(node):
    return isinstance(node, tuple)


def by_path(tree):
    return [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def draw(seed):
    leaves, structure = jax.tree.flatten(AXES, is_leaf=is_names)
    rng = np.random.default_rng(seed)
    return structure.unflatten([rng.normal(size=[SIZES[n] for n in names]).astype(np.float32) for names in leaves])


def optimizer_of(**fields):
    return make_optimizer(dataclasses.replace(CONFIG, **fields), SCHEDULE, AXES, KERNELS)


def run(optimizer, num_steps=2, place=None):
    """Returns the state after some steps, with shardings if ``place`` gives them for parameters and optimizer."""
    params = draw(0)
    state = {
        "params": params,
        "opt": jax.jit(optimizer.init)(params),
        "ema": {},
        "skipped": no_skips(),
        "step": jnp.int32(0),
    }
    step = jax.jit(lambda state, grads: apply_gradients(state, jnp.float32(0), grads, optimizer, SCHEDULE, 0.9)[0])
    if place:
        state |= {"params": jax.device_put(params, place[0]), "opt": jax.device_put(state["opt"], place[1])}
    for seed in range(1, num_steps + 1):
        state = step(state, draw(seed))
    return state


@pytest.mark.parametrize("fields", KINDS, ids=str)
def test_state_is_where_its_parameter_is_and_eight_devices_equal_one(fields):
    optimizer = optimizer_of(**fields)
    mesh = build_mesh(ParallelConfig(fsdp=4, tensor=2))
    shardings = jax.tree.map(
        lambda names, leaf: jax.NamedSharding(mesh, partition_spec(names, leaf.shape, mesh, PARAMETER_RULES, "")),
        AXES, draw(0), is_leaf=is_names,
    )  # fmt: skip
    shapes = jax.eval_shape(optimizer.init, draw(0))
    places = optimizer_shardings(optimizer, shapes, shardings, replicated(mesh))
    expected = {path: sharding.spec for path, sharding in flatten_params(shardings).items()}
    found = [
        (path, leaf, place)
        for (path, leaf), place in zip(by_path(shapes), jax.tree.leaves(places), strict=True)
        if leaf.ndim and not path.endswith("ns_coeffs")
    ]
    for path, leaf, place in found:
        name = next(name for name in expected if path.endswith(name))
        assert (name, place.spec) == (name, expected[name])
        assert leaf.dtype == jnp.dtype(fields.get("moments_dtype", "float32"))
    assert len(found) == len(expected) * (2 if fields["kind"] == "adamw" else 1) + 2 * (fields["kind"] == "muon")

    one, eight = run(optimizer), run(optimizer, place=(shardings, places))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), *jax.device_get((one, eight)))
    kernel = eight["params"]["blocks"]["up"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 2, 8), "the update keeps the sharding"


def test_adamw_is_that_of_optax():
    ours = run(optimizer_of(kind="adamw"))["params"]
    mask = jax.tree.map(lambda names: len([n for n in names if n != "layers"]) >= 2, AXES, is_leaf=is_names)
    optimizer = optax.adamw(0.1, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, mask=mask)
    expected, state = draw(0), optimizer.init(draw(0))
    for seed in (1, 2):
        updates, state = optimizer.update(draw(seed), state, expected)
        expected = optax.apply_updates(expected, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), ours, expected)


def test_sgd_is_a_heavy_ball_with_decoupled_decay_of_matrices():
    ours = run(optimizer_of(kind="sgd", momentum=0.5))["params"]

    def brute(names, param, first, second):
        decay = 0.1 * (sum(n != "layers" for n in names) >= 2)
        param = param - 0.1 * (first + decay * param)
        return param - 0.1 * (second + 0.5 * first + decay * param)

    expected = jax.tree.map(brute, AXES, draw(0), draw(1), draw(2), is_leaf=is_names)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, expected)


def orthogonalised(matrix):
    """Five Newton-Schulz iterations on the singular values, which they change and nothing else.

    Source: Jordan et al.'s Muon: s -> 3.4445 s - 4.7750 s^3 + 2.0315 s^5 from the matrix over its Frobenius norm.
    """
    u, s, v = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    s = s / np.linalg.norm(s)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s) @ v


@pytest.mark.parametrize(
    ("path", "rows"), [("blocks.up.kernel", 8), ("blocks.query.kernel", 8), ("blocks.out_kernel", 8)]
)
def test_muon_orthogonalises_each_layers_kernel_as_one_matrix(path, rows):
    """``[layers d k e]`` is a matrix [d, k e] per layer, ``[layers k e d]`` one [k e, d]."""
    ours = flatten_params(run(optimizer_of(kind="muon"), num_steps=1)["params"])[path]
    param, grad = (flatten_params(draw(seed))[path] for seed in (0, 1))
    for layer in range(2):
        matrix, start = (x[layer].reshape(rows, -1) for x in (grad, param))
        # The first Nesterov step looks along the gradient, whatever its length.
        update = orthogonalised(matrix) * 0.2 * np.sqrt(max(matrix.shape))
        expected = start - 0.1 * (update + 0.1 * start)
        np.testing.assert_allclose(np.asarray(ours[layer]).reshape(rows, -1), expected, atol=2e-4)


def test_muon_leaves_vectors_embeddings_and_heads_to_adamw():
    muon, adamw = (flatten_params(run(optimizer_of(kind=kind))["params"]) for kind in ("muon", "adamw"))
    same = {path for path in muon if np.array_equal(muon[path], adamw[path])}
    assert same == {"blocks.up.bias", "patch.kernel"}


def muon_paths(finetune):
    """Returns the parameters of the tiny model whose momentum is orthogonalised."""
    graphdef, variables = abstract_model(build_objective(dataclasses.replace(TINY, finetune=finetune)))
    trained = trained_paths(variables, finetune)
    axes, params = (
        split_tree(tree, lambda path: path in trained)[0]
        for tree in (parameter_axes(variables), nnx.to_pure_dict(variables))
    )
    kernels = adaptable_kernels(nnx.merge(graphdef, variables))
    optimizer = make_optimizer(dataclasses.replace(CONFIG, kind="muon"), SCHEDULE, axes, kernels)
    state = jax.eval_shape(optimizer.init, params)[1][0].inner_states["muon"].inner_state[0].mu
    return set(flatten_params(state))


def test_muon_is_for_the_kernels_of_the_blocks():
    attention = ("query.kernel", "key.kernel", "value.kernel", "out_kernel")
    assert muon_paths(FinetuneConfig()) == {
        *(f"blocks.{kind}_attention.{name}" for kind in ("self", "cross") for name in attention),
        "blocks.mlp.up.kernel",
        "blocks.mlp.down.kernel",
    }
    only = FinetuneConfig(frozen=("*",), trained=("blocks.mlp.up",), lora_targets=("blocks.mlp.down",))
    assert muon_paths(only) == {"blocks.mlp.up.kernel"}, "low-rank updates are factors of a matrix, not matrices"


def test_muon_with_nothing_to_be_for_is_refused():
    with pytest.raises(ConfigError, match=r"kind=muon is for kernels of the blocks.* use adamw"):
        muon_paths(FinetuneConfig(frozen=("*",), lora_targets=("blocks.mlp",)))
