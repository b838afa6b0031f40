"""What the model may look at, shown by gradients that are exactly zero; and the forms that must agree."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tiny import TINY, tiny_batch
from wamjax.batch import VideoStatistics
from wamjax.errors import ConfigError
from wamjax.layout import Role, build_layout
from wamjax.models.codec import PatchCodec
from wamjax.models.remat import REMAT_POLICIES
from wamjax.models.world_action import Streams, WorldActionModel


def _model(config=TINY, seed=0):
    """A model with random heads: zero-initialised last layers would hide every dependence."""
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: WorldActionModel(jax.random.key(seed), config)))
    return nnx.merge(graphdef, _random_state(config, seed))


@functools.cache
def _random_state(config, seed):
    @jax.jit
    def draw():
        leaves, tree = jax.tree.flatten(nnx.split(WorldActionModel(jax.random.key(seed), config))[1])
        noise = [0.2 * jax.random.normal(jax.random.key(i), leaf.shape) for i, leaf in enumerate(leaves)]
        return jax.tree.unflatten(tree, [a + b for a, b in zip(leaves, noise, strict=True)])

    return draw()


def _streams(layout, channels):
    counts, key = layout.tokens_by_stream(), jax.random.key(3)

    def draw(i, *shape):
        return jax.random.normal(jax.random.fold_in(key, i), shape)

    return Streams(
        times=jnp.linspace(0.0, 0.9, layout.num_slots)[None],
        prompt_id=jnp.zeros((1,), jnp.int32),
        clean_video=draw(0, 1, counts["clean_video"], channels),
        noisy_video=draw(1, 1, counts["noisy_video"], channels),
        actions=draw(2, 1, counts["action"], TINY.data.action_dim),
        state=draw(3, 1, counts["state"], TINY.data.state_dim),
    )


FIELDS = {
    "clean_video": Role.CLEAN_VIDEO,
    "noisy_video": Role.NOISY_VIDEO,
    "actions": Role.ACTION,
    "state": Role.STATE,
}


@pytest.mark.parametrize("role", [Role.NOISY_VIDEO, Role.ACTION])
def test_prediction_of_a_block_reaches_the_clean_past_and_its_own_block_only(role):
    layout, model = build_layout(TINY), _model()
    streams = _streams(layout, 3 * 8 * 8)
    orders = np.concatenate([np.full(s.num_tokens, s.order) for s in layout.stream(role)])

    @jax.jit
    @jax.grad
    def sensitivity(parts, order):
        outputs, _ = model(dataclasses.replace(streams, **parts), layout.full_pass())
        return jnp.sum(jnp.sin(outputs[role]) * (orders == order)[:, None])

    def touched(order):
        """Returns for each stream the orders whose gradient is not exactly zero."""
        gradients = sensitivity({field: getattr(streams, field) for field in FIELDS}, order)
        found = {}
        for field, source in FIELDS.items():
            stream = np.concatenate([np.full(s.num_tokens, s.order) for s in layout.stream(source)])
            found[field] = set(stream[np.any(np.asarray(gradients[field])[0] != 0, axis=-1)])
        return found

    own = {"noisy_video": {1}, "actions": {1}, "state": {1}}
    assert touched(1) == {"clean_video": {0}, **own}
    assert touched(2) == {"clean_video": {0, 1}, **{field: {2} for field in own}}


@pytest.mark.slow
@pytest.mark.parametrize("remat", REMAT_POLICIES)
def test_remat_changes_neither_outputs_nor_gradients(remat):
    layout = build_layout(TINY)
    streams = _streams(layout, 3 * 8 * 8)
    plain = _model()
    graphdef, state = nnx.split(plain)
    again = nnx.merge(graphdef, state)
    again.config = dataclasses.replace(TINY.model, remat=remat)

    def loss(model):
        outputs, _ = model(streams, layout.full_pass())
        return sum(jnp.sum(jnp.sin(out)) for out in outputs.values())

    a, b = (nnx.to_pure_dict(nnx.state(nnx.jit(nnx.grad(loss))(m))) for m in (plain, again))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), a, b)


@pytest.mark.slow
def test_scanned_stack_equals_a_loop_over_its_blocks():
    layout = build_layout(TINY)
    part, streams, model = layout.full_pass(), _streams(layout, 3 * 8 * 8), _model()
    outputs, _ = model(streams, part)
    conditioning = model._condition(streams, part)
    x = model._embed(streams, part)
    for layer in range(TINY.model.num_layers):
        x, _ = jax.tree.map(lambda leaf, i=layer: leaf[i], model.blocks)(x, part, conditioning, None)
    looped = model._predict(x, conditioning.embedding, part)
    for role, out in outputs.items():
        np.testing.assert_allclose(out, looped[role], atol=1e-5)


def test_codec_decode_of_encode_is_the_clip_with_and_without_statistics():
    video = tiny_batch(TINY, 2).video
    codec = PatchCodec(TINY.model.patch, TINY.data.canvas)
    np.testing.assert_array_equal(codec.decode(codec.encode(video)), video)
    mean = np.asarray(video, np.float32).reshape(-1, 16, 24, 3).mean(0)
    codec.calibrate(VideoStatistics(mean=mean, std=40.0))
    np.testing.assert_array_equal(codec.decode(codec.encode(video)), video)
    token = np.asarray(codec.encode(video))[1, 2, 1, 2].reshape(8, 8, 3)
    np.testing.assert_allclose(token, (np.asarray(video, np.float32)[1, 2, 8:, 16:] - mean[8:, 16:]) / 40.0, atol=1e-5)


def test_model_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ConfigError, match="num_heads"):
        WorldActionModel(
            jax.random.key(0), dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, num_heads=3))
        )
