"""The table of published models: numbers of parameters against the reference classes, allocating nothing."""

import math
from typing import Any

import jax
import pytest
from flax import nnx

from wamjax.config.backbone import TwoExpertConfig
from wamjax.config.presets import PRESETS, WAN_2_2_I2V_A14B, WAN_2_2_T2V_A14B
from wamjax.models.video_transformer import TwoExpertTransformer, VideoTransformer

# Summed over WanTransformer3DModel and CosmosTransformer3DModel of diffusers 0.42.1 on the meta device, with the
# published config.json of each model.
PARAMETERS = {
    "wan2.1-t2v-1.3b": 1_418_996_800,
    "wan2.1-t2v-14b": 14_288_491_584,
    "wan2.1-i2v-14b": 16_394_878_784,
    "wan2.1-flf2v-14b": 16_395_536_704,
    "wan2.2-ti2v-5b": 4_999_787_712,
    "wan2.2-t2v-a14b": 2 * 14_288_491_584,
    "wan2.2-i2v-a14b": 2 * 14_288_901_184,
    "cosmos-predict2-2b-text2image": 1_956_405_248,
    "cosmos-predict2-2b-video2world": 1_956_413_440,
}
PER_BLOCK = {
    "wan2.1-t2v-1.3b": 46_440_704,
    "wan2.1-t2v-14b": 351_394_304,
    "wan2.1-i2v-14b": 403_838_464,
    "wan2.2-ti2v-5b": 163_656_704,
}


def _shapes(config):
    make: Any = TwoExpertTransformer if isinstance(config, TwoExpertConfig) else VideoTransformer
    model = nnx.eval_shape(lambda: make(jax.random.key(0), config))
    return nnx.to_pure_dict(nnx.state(model))


def _count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", PRESETS)
def test_preset_has_the_parameters_of_the_reference(name):
    shapes = _shapes(PRESETS[name])
    assert _count(shapes) == PARAMETERS[name]
    if name in PER_BLOCK:
        assert _count(shapes["blocks"]) == PER_BLOCK[name] * shapes["blocks"]["modulation"].shape[0]


def test_preset_boundaries_are_those_of_wan_2_2():
    assert WAN_2_2_T2V_A14B.boundary == 0.875
    assert WAN_2_2_I2V_A14B.boundary == 0.9
