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

from tests.tiny import QUICK_COMPILE
from wamjax.config.backbone import BlockConfig, TwoExpertConfig, VideoTransformerConfig
from wamjax.config.schema import ParallelConfig
from wamjax.errors import ConfigError
from wamjax.flops.jaxpr import count_jaxpr
from wamjax.layout import UP_TO, Layout, Role, Rotary, Segment
from wamjax.models.video_transformer import TwoExpertTransformer, VideoTransformer
from wamjax.parallel.mesh import batch_sharding, build_mesh
from wamjax.parallel.rule_tables import PARAMETER_RULES
from wamjax.parallel.rules import partition_spec, placing
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
jit = functools.partial(jax.jit, compiler_options=QUICK_COMPILE)


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


@pytest.mark.parametrize(
    ("config", "mode"),
    [
        (WAN, "forward"),
        pytest.param(WAN, "gradients", marks=pytest.mark.slow),
        pytest.param(COSMOS, "gradients", marks=pytest.mark.slow),
    ],
    ids=["wan forward", "wan gradients", "cosmos gradients"],
)
def test_video_transformer_rematerialised_on_eight_devices_equals_neither(config, mode):
    inputs = _inputs(config, batch_size=4)
    graphdef, state = nnx.split(_model(config))
    again = nnx.split(_model(dataclasses.replace(config, remat="full")))[0]
    params, axes = nnx.to_pure_dict(state), parameter_axes(state)

    def run(graphdef, params, inputs):
        def loss(params):
            out = nnx.merge(graphdef, params)(**inputs)
            return jnp.mean(jnp.sin(out)), out

        return jax.value_and_grad(loss, has_aux=True)(params) if mode == "gradients" else loss(params)

    expected = jit(functools.partial(run, graphdef))(params, inputs)
    mesh = build_mesh(ParallelConfig(data=1, fsdp=2, context=2, tensor=2))
    shardings = jax.tree.map(
        lambda names, leaf: NamedSharding(mesh, partition_spec(names, leaf.shape, mesh, PARAMETER_RULES, "parameter")),
        axes,
        params,
        is_leaf=lambda node: isinstance(node, tuple),
    )

    def placed(params, inputs):
        with placing(mesh):
            return run(again, params, inputs)

    sharded = jax.device_put(params, shardings)
    query = sharded["blocks"]["self_attention"]["query"]["kernel"]
    assert query.addressable_shards[0].data.size * 4 == query.size  # over fsdp and tensor
    program = jit(placed, in_shardings=(shardings, batch_sharding(mesh)))
    if mode == "gradients":
        plain = jax.make_jaxpr(functools.partial(run, graphdef))(params, inputs)
        assert count_jaxpr(program.trace(sharded, inputs).jaxpr).total > 1.1 * count_jaxpr(plain).total
    got = program(sharded, inputs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), got, expected)


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

    @jit
    def whole():
        layout_pass = layout.full_pass()
        return model.run(tokens, layout_pass, model.condition(ids, inputs["text"], layout_pass))[0]

    @jit
    def by_frames():
        first, second = (layout.context_pass(frame, frame) for frame in range(2))
        begun, cache = model.run(
            tokens[:, :half], first, model.condition(ids, inputs["text"], first), return_cache=True
        )
        rest, _ = model.run(tokens[:, half:], second, model.condition(ids, inputs["text"], second), cache)
        return jnp.concatenate([begun, rest], axis=1)

    np.testing.assert_allclose(whole(), by_frames(), atol=1e-5)


def test_video_transformer_hidden_text_changes_nothing():
    model, inputs = _model(T2V), _inputs(T2V)
    mask = jnp.array([[True, True, False, True, False], [True] * 5])
    sensitivity = jit(jax.grad(lambda text: jnp.sum(jnp.sin(model(**{**inputs, "text": text}, text_mask=mask)))))
    touched = np.any(np.asarray(sensitivity(inputs["text"])) != 0, axis=-1)
    np.testing.assert_array_equal(touched, mask)


def test_two_experts_switch_at_the_boundary():
    model, inputs = _model(TwoExpertConfig(expert=T2V, boundary=0.875), make=TwoExpertTransformer), _inputs(T2V)
    graphdef = nnx.split(model.high_noise)[0]
    both = jit(lambda ids: model(**{**inputs, "ids": ids}))
    one = jit(lambda params, ids: nnx.merge(graphdef, params)(**{**inputs, "ids": ids}))
    high, low = (nnx.to_pure_dict(nnx.state(expert)) for expert in (model.high_noise, model.low_noise))
    for noise, chosen, other in ((875.0, high, low), (874.9, low, high), (0.0, low, high)):
        ids = jnp.full((2,), noise)
        np.testing.assert_allclose(both(ids), one(chosen, ids), atol=1e-5)
        assert float(jnp.max(jnp.abs(both(ids) - one(other, ids)))) > 1e-3


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
