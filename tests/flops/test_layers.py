"""Closed forms against published totals, hand counts and a brute-force convolution."""

import inspect
import itertools

import numpy as np
import pytest

from wamjax.flops import layers


def wan_forward(
    *, width, num_layers, ffn_width, tokens, pairs, channels_in, channels_out, patch_tokens, head_tokens, text_tokens,
    image_tokens, times,
):  # fmt: skip
    """Forward FLOPs of a Wan transformer by component, composed from the public closed forms."""
    context = text_tokens + image_tokens
    return {
        "self_projections": num_layers * layers.self_projections(tokens, width),
        "self_scores": num_layers * layers.attention_scores(pairs, width),
        "cross_qo": num_layers * layers.cross_qo(tokens, width),
        "cross_kv": num_layers * layers.cross_kv(context, width),
        "cross_scores": num_layers * layers.cross_scores(tokens, context, width),
        "ffn": num_layers * layers.ffn(tokens, width, ffn_width),
        "patch": layers.linear(patch_tokens, channels_in * 4, width),
        "head": layers.linear(head_tokens, width, channels_out * 4),
        "text_embed": layers.mlp(text_tokens, (4096, width, width)),
        "image_embed": layers.mlp(image_tokens, (1280, 1280, width)),
        "time_embed": layers.mlp(times, (256, width, width)) + layers.linear(times, width, 6 * width),
    }


@pytest.mark.parametrize(
    ("tokens", "forward"),
    [(21 * 30 * 52, 1_678_370_283_192_320), (21 * 45 * 80, 6_523_436_592_005_120)],
)
def test_wan_14b_text_to_video_forward_equals_reference_count(tokens, forward):
    parts = wan_forward(
        width=5120, num_layers=40, ffn_width=13824, tokens=tokens, pairs=tokens**2, channels_in=16, channels_out=16,
        patch_tokens=tokens, head_tokens=tokens, text_tokens=512, image_tokens=0, times=1,
    )  # fmt: skip
    assert sum(parts.values()) == forward


def test_wan_14b_train_step_agrees_with_maxdiffusion_log_but_for_its_extra_cross_projection():
    # MaxDiffusion logs 4,893.27 TFLOP per device for Wan-14B at 75,600 tokens, batch 1, 4 devices. It counts cross k
    # and v three times instead of twice and leaves the embeddings out.
    n = 75_600
    parts = wan_forward(
        width=5120, num_layers=40, ffn_width=13824, tokens=n, pairs=n**2, channels_in=16, channels_out=16,
        patch_tokens=n, head_tokens=n, text_tokens=512, image_tokens=0, times=1,
    )  # fmt: skip
    block = sum(parts[k] for k in ("self_projections", "self_scores", "cross_qo", "cross_kv", "cross_scores", "ffn"))
    step = 3 * (block + parts["cross_kv"] // 2) / 4
    assert step / 1e12 == pytest.approx(4_893.27, rel=2e-4)


def test_dreamzero_droid_forward_equals_reference_count():
    width, actions, states = 5120, 96, 4
    parts = wan_forward(
        width=width, num_layers=40, ffn_width=13824, tokens=15_940, pairs=76_576_484, channels_in=36, channels_out=16,
        patch_tokens=2 * 9 * 880, head_tokens=9 * 880, text_tokens=512, image_tokens=257, times=15_940,
    )  # fmt: skip
    action_state = (
        layers.linear(actions, 32, width)
        + layers.linear(actions, 2 * width, width)
        + layers.linear(actions, width, width)
        + layers.mlp(states, (64, 1024, width))
        + layers.mlp(actions, (width, 1024, 32))
    )
    assert sum(parts.values()) + action_state == 463_073_641_365_504
    published = {
        "self_projections": 1.3371e14, "self_scores": 6.2731e13, "cross_qo": 6.6857e13, "cross_kv": 3.2254e12,
        "cross_scores": 1.0042e13, "ffn": 1.8051e14, "patch": 2.3357e10, "head": 5.1905e9, "text_embed": 4.8318e10,
        "image_embed": 4.2107e9, "time_embed": 5.8918e12,
    }  # fmt: skip
    for name, flops in published.items():
        assert parts[name] == pytest.approx(flops, rel=5e-5), name
    assert action_state == pytest.approx(1.6186e10, rel=5e-5)


def test_fast_wam_video_expert_forward_equals_reference_count():
    parts = wan_forward(
        width=3072, num_layers=30, ffn_width=14336, tokens=360, pairs=100_800, channels_in=48, channels_out=48,
        patch_tokens=360, head_tokens=360, text_tokens=129, image_tokens=0, times=360,
    )  # fmt: skip
    assert sum(parts.values()) == 3_380_621_672_448


def test_counts_stay_exact_beyond_64_bits_and_for_numpy_integers():
    assert layers.attention_scores(10**15, 10**6) == 4 * 10**21
    huge = layers.linear(np.int64(2**40), np.int32(2**20), np.int64(2**20))
    assert type(huge) is int
    assert huge == 2**81


def test_linear_with_float_size_is_refused():
    unchecked = inspect.unwrap(layers.linear)  # without the type checks of pytest, as in a run
    with pytest.raises(TypeError, match=r"fan_in=128\.0 is not an integer"):
        unchecked(4, 128.0, 3)


def test_linear_with_negative_size_is_refused():
    with pytest.raises(ValueError, match="tokens=-1 is negative"):
        layers.linear(-1, 2, 3)


def brute_force_products(sizes, kernel, strides, padding, input_dilation, kernel_dilation):
    """Counts multiplications by a real input element, by sliding the kernel over a marked, padded input."""
    marked = np.zeros([(s - 1) * d + 1 for s, d in zip(sizes, input_dilation, strict=True)], np.int64)
    marked[tuple(slice(None, None, d) for d in input_dilation)] = 1
    lo = [max(0, p[0]) for p in padding]
    hi = [max(0, p[1]) for p in padding]
    padded = np.pad(marked, list(zip(lo, hi, strict=True)))
    crop = tuple(slice(max(0, -p[0]), n - max(0, -p[1])) for p, n in zip(padding, padded.shape, strict=True))
    padded = padded[crop]
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, kernel_dilation, strict=True)]
    starts = [range(0, n - r + 1, s) for n, r, s in zip(padded.shape, reach, strides, strict=True)]
    return sum(
        int(padded[tuple(slice(o, o + r, d) for o, r, d in zip(start, reach, kernel_dilation, strict=True))].sum())
        for start in itertools.product(*starts)
    )


@pytest.mark.parametrize("seed", range(24))
def test_conv_of_random_geometry_equals_brute_force(seed):
    rng = np.random.default_rng(seed)
    dims = int(rng.integers(1, 4))

    def draw(low, high):
        return tuple(int(x) for x in rng.integers(low, high, dims))

    sizes, kernel, strides = draw(3, 8), draw(1, 4), draw(1, 4)
    input_dilation, kernel_dilation = draw(1, 3), draw(1, 3)
    # Enough padding that the dilated kernel always fits; negative padding crops.
    padding = tuple((int(rng.integers(-1, 4)), int(rng.integers(2, 5))) for _ in range(dims))
    groups = int(rng.integers(1, 3))
    expected = 2 * (4 // groups) * 6 * brute_force_products(
        sizes, kernel, strides, padding, input_dilation, kernel_dilation
    )  # fmt: skip
    got = layers.conv(
        sizes, kernel, 4, 6, strides=strides, padding=padding, input_dilation=input_dilation,
        kernel_dilation=kernel_dilation, groups=groups,
    )  # fmt: skip
    assert got == expected


def test_conv_with_groups_that_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="groups=3 does not divide in_channels=4"):
        layers.conv((4,), (3,), 4, 6, strides=(1,), padding=((1, 1),), groups=3)
