"""The video transformer's equivalences: remat, sharding, passes with a cache, experts; and what it must not see."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding

from wamjax.config.backbone import BlockConfig, TwoExpertConfig, VideoTransformerConfig
from wamjax.config.schema import ParallelConfig
from wamjax.errors import ConfigError
from wamjax.layout import UP_TO, Layout, Role, Rotary, Segment
from wamjax.models.video_transformer import TwoExpertTransformer, VideoTransformer
from wamjax.parallel.mesh import batch_sharding, build_mesh
from wamjax.parallel.rules import PARAMETER_RULES, partition_spec, placing
from wamjax.training.program import parameter_axes

# Sizes that divide over a mesh of 2 x 2 x 2.
WAN = VideoTransformerConfig(
    block=BlockConfig(width=24, num_heads=4, ffn_width=32, image_branch=True),
    num_layers=2,
    in_channels=3,
    out_channels=2,
    time_width=10,
    text_width=6,
    image_width=8,
)
T2V = dataclasses.replace(WAN, block=dataclasses.replace(WAN.block, image_branch=False), image_width=None)
COSMOS = VideoTransformerConfig(
    block=BlockConfig(
        width=48,
        num_heads=4,
        ffn_width=32,
        context_width=6,
        qk_norm="head",
        use_bias=False,
        modulation="low_rank",
        modulation_rank=5,
        gelu="exact",
    ),
    num_layers=2,
    in_channels=3,
    out_channels=2,
    use_patch_bias=False,
    time_width=48,
    text_width=6,
    text_embedding="none",
    learned_positions=(3, 3, 3),
    padding_mask=True,
)
GRID = (2, 2, 3)


def _model(config: Any, make: Any = VideoTransformer) -> Any:
    """A model with every parameter random: zero heads would hide every dependence."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: make(jax.random.key(0), config)))
    rng = np.random.default_rng(0)
    fill = lambda leaf: jnp.asarray(rng.normal(0.0, 0.3, leaf.shape), jnp.float32)  # noqa: E731
    return nnx.merge(graphdef, jax.tree.map(fill, state))


def _inputs(config: VideoTransformerConfig, batch_size: int = 2) -> dict[str, Any]:
    rng = np.random.default_rng(1)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal((batch_size, *shape)), jnp.float32)

    t, h, w = (size * step for size, step in zip(GRID, config.patch, strict=True))
    inputs = {
        "latents": draw(t, h, w, config.in_channels),
        "ids": jnp.linspace(10.0, 900.0, batch_size),
        "text": draw(5, config.text_width),
    }
    if config.image_width is not None:
        inputs["image"] = draw(4, config.image_width)
    if config.padding_mask:
        inputs["padding_mask"] = (draw(t, h, w, 1) > 0).astype(jnp.float32)
    return inputs


def _loss_and_gradients(graphdef, params, inputs):
    return jax.value_and_grad(lambda p: jnp.mean(jnp.sin(nnx.merge(graphdef, p)(**inputs))))(params)


# The block has the same parts in both: the fast set compiles one.
VARIANTS = pytest.mark.parametrize("config", [WAN, pytest.param(COSMOS, marks=pytest.mark.slow)], ids=["wan", "cosmos"])


@VARIANTS
def test_video_transformer_full_remat_changes_neither_loss_nor_gradients(config):
    inputs, results = _inputs(config), []
    for remat in ("none", "full"):
        graphdef, state = nnx.split(_model(dataclasses.replace(config, remat=remat)))
        run = jax.jit(lambda p, graphdef=graphdef: _loss_and_gradients(graphdef, p, inputs))
        traced = run.trace(nnx.to_pure_dict(state))
        assert ("remat" in str(traced.jaxpr)) == (remat == "full")
        results.append(run(nnx.to_pure_dict(state)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *results)


@VARIANTS
def test_video_transformer_on_eight_devices_equals_one(config):
    graphdef, state = nnx.split(_model(config))
    params, axes = nnx.to_pure_dict(state), parameter_axes(state)
    inputs = _inputs(config, batch_size=4)
    expected = jax.jit(functools.partial(_loss_and_gradients, graphdef))(params, inputs)
    mesh = build_mesh(ParallelConfig(data=1, fsdp=2, context=2, tensor=2))
    shardings = jax.tree.map(
        lambda names, leaf: NamedSharding(mesh, partition_spec(names, leaf.shape, mesh, PARAMETER_RULES, "parameter")),
        axes,
        params,
        is_leaf=lambda node: isinstance(node, tuple),
    )

    def placed(params, inputs):
        with placing(mesh):
            return _loss_and_gradients(graphdef, params, inputs)

    sharded = jax.device_put(params, shardings)
    query = sharded["blocks"]["self_attention"]["query"]["kernel"]
    assert query.addressable_shards[0].data.size * 4 == query.size  # over fsdp and tensor
    got = jax.jit(placed, in_shardings=(shardings, batch_sharding(mesh)))(sharded, inputs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), got, expected)


def _frame_causal_layout():
    """Each latent frame sees itself and earlier ones: a formulation that may be cached frame by frame."""
    frames, tokens = GRID[0], GRID[1] * GRID[2]
    segments = tuple(
        Segment(
            role=Role.CLEAN_VIDEO,
            order=frame,
            num_tokens=tokens,
            start=frame * tokens,
            grid=(1, *GRID[1:]),
            first_frame=frame,
            rotary=Rotary.VIDEO,
        )
        for frame in range(frames)
    )
    return Layout(segments, {(Role.CLEAN_VIDEO, Role.CLEAN_VIDEO): UP_TO})


def test_video_transformer_runs_any_pass_and_continues_from_its_cache():
    model, inputs, layout = _model(T2V), _inputs(T2V), _frame_causal_layout()
    tokens, half = model.embed(inputs["latents"]), GRID[1] * GRID[2]
    ids = inputs["ids"][:, None]

    @jax.jit
    def whole():
        layout_pass = layout.full_pass()
        return model.run(tokens, layout_pass, model.condition(ids, inputs["text"], layout_pass))[0]

    @jax.jit
    def by_frames():
        first, second = (layout.context_pass(frame, frame) for frame in range(2))
        begun, cache = model.run(
            tokens[:, :half], first, model.condition(ids, inputs["text"], first), return_cache=True
        )
        rest, _ = model.run(tokens[:, half:], second, model.condition(ids, inputs["text"], second), cache)
        return jnp.concatenate([begun, rest], axis=1)

    np.testing.assert_allclose(whole(), by_frames(), atol=1e-5)
    everything = jax.jit(lambda: model(**inputs))()
    causal = jax.jit(lambda: model(**inputs, layout_pass=layout.full_pass()))()
    assert (
        float(jnp.max(jnp.abs(everything[:, :1] - causal[:, :1]))) > 1e-3
    )  # the first frame no longer sees the second


def test_video_transformer_hidden_text_changes_nothing():
    model, inputs = _model(T2V), _inputs(T2V)
    mask = jnp.array([[True, True, False, True, False], [True] * 5])
    sensitivity = jax.jit(jax.grad(lambda text: jnp.sum(jnp.sin(model(**{**inputs, "text": text}, text_mask=mask)))))
    touched = np.any(np.asarray(sensitivity(inputs["text"])) != 0, axis=-1)
    np.testing.assert_array_equal(touched, mask)


def test_video_transformer_at_the_base_frame_rate_equals_no_rate():
    model, inputs = _model(COSMOS), _inputs(COSMOS)
    run = jax.jit(lambda fps: model(**inputs, fps=fps))
    np.testing.assert_allclose(run(jnp.asarray(24)), jax.jit(lambda: model(**inputs))(), atol=1e-5)
    np.testing.assert_allclose(run(jnp.asarray(7.5)), jax.jit(lambda: model(**inputs, fps=7.5))(), atol=1e-5)
    assert float(jnp.max(jnp.abs(run(jnp.asarray(24.0)) - run(jnp.asarray(7.5))))) > 1e-3


@pytest.mark.parametrize(("noise", "expert"), [(875.0, "high_noise"), (874.9, "low_noise"), (0.0, "low_noise")])
def test_two_experts_switch_at_the_boundary(noise, expert):
    model = _model(TwoExpertConfig(expert=T2V, boundary=0.875), make=TwoExpertTransformer)
    inputs = {**_inputs(T2V), "ids": jnp.full((2,), noise)}
    got = jax.jit(lambda: model(**inputs))()
    np.testing.assert_allclose(got, jax.jit(lambda: getattr(model, expert)(**inputs))(), atol=1e-6)
    other = {"high_noise": "low_noise", "low_noise": "high_noise"}[expert]
    assert float(jnp.max(jnp.abs(got - jax.jit(lambda: getattr(model, other)(**inputs))()))) > 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dataclasses.replace(T2V.block, num_heads=5), "even head dimension"),
        (lambda: dataclasses.replace(T2V, image_width=8), "image_branch"),
        (lambda: dataclasses.replace(T2V, text_embedding="none"), "context_width"),
        (lambda: dataclasses.replace(COSMOS, time_width=10), "low_rank"),
        (lambda: TwoExpertConfig(expert=T2V, boundary=875.0), "875"),
    ],
)
def test_backbone_config_that_does_not_fit_together_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
