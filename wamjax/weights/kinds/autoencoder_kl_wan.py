"""Checkpoints of the Wan autoencoders: diffusers' and the original Wan's, of 2.1 and 2.2."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
from einops import rearrange

from wamjax.config.wan_vae import WAN_2_1_VAE, WanVaeConfig
from wamjax.errors import ConfigError
from wamjax.models.wan_vae import WanVae
from wamjax.weights.kinds.kind import ModelKind
from wamjax.weights.rules import TensorRule

NAMINGS = ("diffusers", "original")

# diffusers' name -> ours. What a config.json leaves out has the value of Wan 2.1, as in diffusers.
_FIELDS = {
    "base_dim": "base_width",
    "decoder_base_dim": "decoder_base_width",
    "dim_mult": "width_multipliers",
    "num_res_blocks": "num_res_blocks",
    "temperal_downsample": "temporal_downsample",
    "z_dim": "latent_channels",
    "is_residual": "has_level_shortcuts",
    "patch_size": "patch_size",
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "latents_mean": "latents_mean",
    "latents_std": "latents_std",
}
# Values that change nothing here: sizes that follow from the levels, and a switch the class does not read.
_IGNORED = ("scale_factor_temporal", "scale_factor_spatial", "clip_output")
_UNSUPPORTED = {"attn_scales": [], "dropout": 0.0}

# Patterns from torch's layouts.
_CONV = "o i t h w -> t h w i o"
_FRAME_CONV = "o i h w -> h w i o"
_POINTWISE = "o i 1 1 1 -> i o"
_NORM = "c 1 1 1 -> c"


def parse_config(config: Mapping[str, Any]) -> WanVaeConfig:
    """Returns the configuration of a ``config.json``.

    Raises:
      ConfigError: A key is unknown, or has a value that no published autoencoder has.
    """
    values: dict[str, Any] = {}
    for name, value in config.items():
        if name in _FIELDS:
            values[_FIELDS[name]] = tuple(value) if isinstance(value, list | tuple) else value
        elif name in _UNSUPPORTED:
            if value and value != _UNSUPPORTED[name]:
                raise ConfigError(f"config.json: {name}={value!r}; only {_UNSUPPORTED[name]!r} is supported")
        elif not name.startswith("_") and name not in _IGNORED:
            raise ConfigError(f"config.json: AutoencoderKLWan has no {name!r}; known: {sorted(_FIELDS)}")
    defaults = WAN_2_1_VAE
    values["patch_size"] = values.get("patch_size") or 1
    values["decoder_base_width"] = values.get("decoder_base_width") or values.get("base_width", defaults.base_width)
    values.setdefault("latents_mean", defaults.latents_mean)
    values.setdefault("latents_std", defaults.latents_std)
    return WanVaeConfig(**values)


def tensor_rules(config: WanVaeConfig, naming: str) -> tuple[TensorRule, ...]:
    """Returns one rule per parameter.

    Raises:
      ConfigError: ``naming`` is not one of ``NAMINGS``.
    """
    if naming not in NAMINGS:
        raise ConfigError(f"naming {naming!r} of AutoencoderKLWan is unknown; expected one of {NAMINGS}")
    names = _names(config, original=naming == "original")
    return tuple(
        TensorRule(path=path, name=name, pattern=pattern, sizes={"three": 3} if "three" in pattern else {})
        for path, name, pattern in names
    )


def reference_outputs(model: WanVae, inputs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Runs every ``video*`` and every ``z*`` of the inputs, which are in the reference's layout ``[b c t h w]``.

    The outputs end like the input they come from: ``video_a`` gives ``moments_a``, and ``video`` gives ``moments``.
    ``out``, what the reference's ``forward`` returns, is there if exactly one input is a video.

    Raises:
      ConfigError: An input is neither.
    """
    outputs: dict[str, jax.Array] = {}
    for name, array in inputs.items():
        if name.startswith("video"):
            found, suffix = _video_outputs(model, _channels_last(array)), name.removeprefix("video")
        elif name.startswith("z"):
            found, suffix = {"zdec_raw": model.decode_unclamped(_channels_last(array))}, name.removeprefix("z")
        else:
            raise ConfigError(f"inputs.npz: {name!r} is no input of AutoencoderKLWan; expected video* and z*")
        for key, value in found.items():
            # An input numbered without an underscore may be written with one in the outputs.
            for end in {suffix, f"_{suffix.lstrip('_')}"}:
                outputs[key + end] = _channels_first(value)
    videos = [name.removeprefix("video") for name in inputs if name.startswith("video")]
    if len(videos) == 1:
        outputs["out"] = outputs["recon" + videos[0]]
    return outputs


def _video_outputs(model: WanVae, video: jax.Array) -> dict[str, jax.Array]:
    moments = model.encode(video)
    pixels = model.decode_unclamped(moments.mean)
    return {
        "moments": jax.numpy.concatenate(moments, axis=-1),
        "mode": moments.mean,
        "latent_norm": model.normalise(moments.mean),
        "recon_raw": pixels,
        "recon": jax.numpy.clip(pixels, -1.0, 1.0),
    }


def _channels_last(array: jax.Array) -> jax.Array:
    return rearrange(array, "b c t h w -> b t h w c")


def _channels_first(array: jax.Array) -> jax.Array:
    return rearrange(array, "b t h w c -> b c t h w")


Names = Iterator[tuple[str, str, str]]  # (path of ours, name of the reference's, pattern)


def _names(config: WanVaeConfig, *, original: bool) -> Names:
    """Yields every parameter.

    Source: original names from wan/modules/vae.py (2.1) and vae2_2.py (2.2); how diffusers names the same from its
    scripts/convert_wan_to_diffusers.py.
    """
    encoder = _encoder_levels(config, original=original)
    decoder = _decoder_levels(config, original=original)
    for side, levels in (("encoder", encoder), ("decoder", decoder)):
        yield from _weighted(f"{side}.conv_in", f"{side}.{'conv1' if original else 'conv_in'}", _CONV)
        yield from levels
        yield from _middle(side, original=original)
        head = (
            (f"{side}.head.0.gamma", f"{side}.head.2") if original else (f"{side}.norm_out.gamma", f"{side}.conv_out")
        )
        yield f"{side}.norm_out.scale", head[0], _NORM
        yield from _weighted(f"{side}.conv_out", head[1], _CONV)
    yield from _weighted("moments", "conv1" if original else "quant_conv", _POINTWISE)
    yield from _weighted("latents", "conv2" if original else "post_quant_conv", _POINTWISE)


def _encoder_levels(config: WanVaeConfig, *, original: bool) -> Names:
    """Yields the encoder's levels: in one flat list (2.1), or as blocks of their own (2.2)."""
    place, widths = 0, config.encoder_widths
    flat = "encoder.downsamples" if original else "encoder.down_blocks"
    for level, width in enumerate(widths):
        entering = (config.base_width, *widths)[level]
        ours = f"encoder.levels.{level}"
        for block in range(config.num_res_blocks):
            inside = f"{level}.{'downsamples' if original else 'resnets'}.{block}"
            theirs = f"{flat}.{inside if config.has_level_shortcuts else place}"
            changes = block == 0 and entering != width
            yield from _residual(f"{ours}.blocks.{block}", theirs, original=original, has_shortcut=changes)
            place += 1
        if level < len(widths) - 1:
            inside = f"{level}.{f'downsamples.{config.num_res_blocks}' if original else 'downsampler'}"
            theirs = f"{flat}.{inside if config.has_level_shortcuts else place}"
            yield from _resample(f"{ours}.downsample", theirs, has_time=config.temporal_downsample[level])
            place += 1


def _decoder_levels(config: WanVaeConfig, *, original: bool) -> Names:
    """Yields the decoder's levels: one flat list in the original 2.1, blocks of their own otherwise."""
    place, widths, nested = 0, config.decoder_widths, config.has_level_shortcuts
    for level, width in enumerate(widths):
        entering = width if level == 0 else widths[level - 1] // (1 if nested else 2)
        ours = f"decoder.levels.{level}"
        inner = f"decoder.upsamples.{level}.upsamples" if nested else "decoder.upsamples"
        for block in range(config.num_res_blocks + 1):
            if original:
                theirs = f"{inner}.{block if nested else place}"
            else:
                theirs = f"decoder.up_blocks.{level}.resnets.{block}"
            changes = block == 0 and entering != width
            yield from _residual(f"{ours}.blocks.{block}", theirs, original=original, has_shortcut=changes)
            place += 1
        if level < len(widths) - 1:
            if original:
                theirs = f"{inner}.{config.num_res_blocks + 1 if nested else place}"
            else:
                theirs = f"decoder.up_blocks.{level}.{'upsampler' if nested else 'upsamplers.0'}"
            has_time = config.temporal_downsample[::-1][level]
            yield from _resample(f"{ours}.upsample", theirs, has_time=has_time)
            place += 1


def _middle(side: str, *, original: bool) -> Names:
    ours = f"{side}.middle"
    if original:
        first, attention, second = (f"{side}.middle.{index}" for index in range(3))
    else:
        within = f"{side}.mid_block"
        first, attention, second = f"{within}.resnets.0", f"{within}.attentions.0", f"{within}.resnets.1"
    yield from _residual(f"{ours}.first", first, original=original, has_shortcut=False)
    yield f"{ours}.attention.norm.scale", f"{attention}.norm.gamma", "c 1 1 -> c"
    yield f"{ours}.attention.kernel", f"{attention}.to_qkv.weight", "(three o) i 1 1 -> i three o"
    yield f"{ours}.attention.bias", f"{attention}.to_qkv.bias", "(three o) -> three o"
    yield from _weighted(f"{ours}.attention.out", f"{attention}.proj", "o i 1 1 -> i o")
    yield from _residual(f"{ours}.second", second, original=original, has_shortcut=False)


def _residual(ours: str, theirs: str, *, original: bool, has_shortcut: bool) -> Names:
    norms = ("residual.0", "residual.3") if original else ("norm1", "norm2")
    convs = ("residual.2", "residual.6") if original else ("conv1", "conv2")
    for end, norm, conv in zip(("in", "out"), norms, convs, strict=True):
        yield f"{ours}.norm_{end}.scale", f"{theirs}.{norm}.gamma", _NORM
        yield from _weighted(f"{ours}.conv_{end}", f"{theirs}.{conv}", _CONV)
    if has_shortcut:
        yield from _weighted(f"{ours}.shortcut", f"{theirs}.{'shortcut' if original else 'conv_shortcut'}", _POINTWISE)


def _resample(ours: str, theirs: str, *, has_time: bool) -> Names:
    yield from _weighted(f"{ours}.space", f"{theirs}.resample.1", _FRAME_CONV)
    if has_time:
        yield from _weighted(f"{ours}.time", f"{theirs}.time_conv", _CONV)


def _weighted(ours: str, theirs: str, pattern: str) -> Names:
    yield f"{ours}.kernel", f"{theirs}.weight", pattern
    yield f"{ours}.bias", f"{theirs}.bias", ""


KIND = ModelKind(
    class_name="AutoencoderKLWan",
    parse_config=parse_config,
    build=WanVae,
    rules=tensor_rules,
    namings=NAMINGS,
    outputs=reference_outputs,
)
