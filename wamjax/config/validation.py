"""Ranges of single configuration values, and the few pairs that exclude each other.

Owns what can be said of a value without deriving a size; sizes that must divide are checked where they are derived
(``config.geometry``, ``parallel``).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable

from wamjax.config.acting import check_acting
from wamjax.config.buckets import BucketsConfig
from wamjax.config.schema import RunConfig
from wamjax.config.sources import MixtureConfig
from wamjax.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # a folder's name on any system
_Rule = tuple[Callable[[float], bool], str]

_POSITIVE: _Rule = (lambda x: x > 0, "more than 0")
_NOT_NEGATIVE: _Rule = (lambda x: x >= 0, "0 or more")
_FRACTION: _Rule = (lambda x: 0 <= x <= 1, "between 0 and 1")
_PROPER_FRACTION: _Rule = (lambda x: 0 <= x < 1, "at least 0 and below 1")
_OPEN_FRACTION: _Rule = (lambda x: 0 < x < 1, "between 0 and 1, both excluded")
_AXIS: _Rule = (lambda x: x == -1 or x > 0, "more than 0, or -1 for what is left")

_RULES: dict[str, dict[str, _Rule]] = {
    "model": {
        **dict.fromkeys(
            ("width", "num_layers", "num_heads", "ffn_width", "text_tokens", "text_width", "max_prompts"), _POSITIVE
        ),
        **dict.fromkeys(("time_width", "action_hidden", "rope_theta", "norm_eps"), _POSITIVE),
    },
    "clip": dict.fromkeys(("num_frames", "height", "width", "text_tokens", "image_tokens"), _POSITIVE),
    "actions": dict.fromkeys(
        ("hidden_width", "num_categories", "expert_width", "expert_ffn_width", "plan_dim", "plan_layers"), _POSITIVE
    ),
    "prefix": {"width": _NOT_NEGATIVE, **dict.fromkeys(("ffn_width", "num_key_heads"), _POSITIVE)},
    "layout": {
        **dict.fromkeys(("num_blocks", "frames_per_block", "actions_per_block", "pad_multiple", "pad_unit"), _POSITIVE),
        **dict.fromkeys(("states_per_block", "window"), _NOT_NEGATIVE),
    },
    "objective": {
        **dict.fromkeys(("shift", "num_timesteps", "min_time", "edm_log_std"), _POSITIVE),
        **dict.fromkeys(
            ("video_weight", "action_weight", "value_weight", "gripper_weight", "plan_weight", "action_shift"),
            _NOT_NEGATIVE,
        ),
        "edm_log_mean": (lambda x: -6 <= x <= 6, "between -6 and 6"),
        **dict.fromkeys(
            ("prompt_dropout", "history_noise", "history_max_time", "edm_uniform", "plan_balance"), _FRACTION
        ),
    },
    "data": {
        **dict.fromkeys(("state_dim", "action_dim", "frame_stride", "window_stride", "num_threads"), _POSITIVE),
        **dict.fromkeys(("split_seed", "shuffle_seed", "prefetch", "decoded_frames_mib"), _NOT_NEGATIVE),
        "validation_fraction": _OPEN_FRACTION,
        "broken_budget": _PROPER_FRACTION,
    },
    "data.filters": {
        **dict.fromkeys(("min_steps", "idle_motion"), _NOT_NEGATIVE),
        "max_idle": _FRACTION,
    },
    "data.mixture": {"temperature": _POSITIVE},
    "data.buckets": {"batch_multiple": _POSITIVE},
    "data.augmentation": {
        **dict.fromkeys(("brightness", "contrast", "saturation"), _FRACTION),
        "crop": (lambda x: 0 < x <= 1, "more than 0, at most 1"),
        "hue": (lambda x: 0 <= x <= 0.5, "between 0 and 0.5"),
        "seed": _NOT_NEGATIVE,
    },
    "optimizer": {
        **dict.fromkeys(("peak_lr", "eps", "clip_norm", "max_skipped"), _POSITIVE),
        **dict.fromkeys(("warmup_steps", "decay_steps", "weight_decay"), _NOT_NEGATIVE),
        **dict.fromkeys(("b1", "b2", "momentum", "ema_decay"), _PROPER_FRACTION),
        "final_lr_fraction": _FRACTION,
        "decay_fraction": (lambda x: 0 < x <= 1, "more than 0, at most 1"),
    },
    "finetune": dict.fromkeys(("lora_rank", "lora_alpha"), _POSITIVE),
    "parallel": {
        **dict.fromkeys(("data", "fsdp", "tensor"), _AXIS),
        "context": (lambda x: x >= -1, "more than 0, -1 for what is left, or 0 for what the batch leaves"),
    },
    "train": {**dict.fromkeys(("num_steps", "global_batch_size", "accumulate"), _POSITIVE), "seed": _NOT_NEGATIVE},
    "checkpoint": {"every_steps": _NOT_NEGATIVE, "keep": _POSITIVE},
    "sampling": {
        **dict.fromkeys(("steps", "sigma_max", "sigma_min"), _POSITIVE),
        **dict.fromkeys(("action_steps", "shift", "action_shift", "guidance", "action_guidance"), _NOT_NEGATIVE),
        "video_final_noise": _PROPER_FRACTION,
    },
    "evaluate": {
        **dict.fromkeys(("every_steps", "rollout_first_seed", "seed"), _NOT_NEGATIVE),
        **dict.fromkeys(("num_batches", "num_windows", "solver_steps", "bootstrap"), _POSITIVE),
        **dict.fromkeys(("rollout_trials", "rollout_max_steps"), _POSITIVE),
    },
    "log": {"every_steps": _POSITIVE},
}


def check_values(config: RunConfig) -> None:
    """Raises ``ConfigError`` for the first value outside its range, naming its dotted key and the range."""
    for section, rules in _RULES.items():
        for name, (is_valid, expected) in rules.items():
            value = operator.attrgetter(f"{section}.{name}")(config)
            if not is_valid(value):
                raise ConfigError(f"config.{section}.{name} = {value} is out of range; expected {expected}")
    for name in ("video_beta", "action_beta"):
        beta = getattr(config.objective, name)
        if beta and (len(beta) != 2 or min(beta) <= 0):
            raise ConfigError(
                f"config.objective.{name} = {beta}; expected two positive numbers (a, b), or () for uniform"
            )
    low, high = config.objective.edm_range
    if not 0 < low < high:
        raise ConfigError(
            f"config.objective.edm_range = {config.objective.edm_range}; expected two positive noise levels, ascending"
        )
    _check_sampling(config)
    check_acting(config)
    _check_mixture(config.data.mixture)
    _check_buckets(config.data.buckets, config.data.mixture)
    if config.backbone is not None and config.data.augmentation.is_on:
        raise ConfigError(
            "config.data.augmentation changes frames anew every epoch, and config.backbone reads latents that are made "
            "once: leave it at its defaults"
        )
    if config.backbone is None and config.objective.prompt_dropout:
        raise ConfigError(
            f"config.objective.prompt_dropout={config.objective.prompt_dropout} drops embedded prompts, which "
            "config.backbone alone reads; set it to 0"
        )
    if config.objective.video_residual != "none" and config.objective.video_prediction != "x0":
        raise ConfigError(
            f"config.objective.video_residual = {config.objective.video_residual} needs "
            f"config.objective.video_prediction = x0, not {config.objective.video_prediction}"
        )


def _check_sampling(config: RunConfig) -> None:
    """Raises ``ConfigError`` for noise levels out of order, or for steps that cannot be left out."""
    sampling = config.sampling
    if sampling.sigma_min >= sampling.sigma_max:
        raise ConfigError(
            f"config.sampling.sigma_min = {sampling.sigma_min}; expected less than config.sampling.sigma_max = "
            f"{sampling.sigma_max}"
        )
    chosen = sampling.evaluated_steps
    if chosen and (chosen[0] != 0 or sorted(set(chosen)) != list(chosen) or chosen[-1] >= sampling.steps):
        raise ConfigError(
            f"config.sampling.evaluated_steps = {chosen}; expected ascending indices of the config.sampling.steps = "
            f"{sampling.steps} steps, the first being 0, or () for all"
        )


def _check_mixture(mixture: MixtureConfig) -> None:
    """Raises ``ConfigError`` for names, weights or stages that make no mixture."""
    names = [source.name for source in mixture.sources]
    for i, source in enumerate(mixture.sources):
        where = f"config.data.mixture.sources[{i}]"
        if not _NAME.fullmatch(source.name) or names.index(source.name) != i:
            raise ConfigError(
                f"{where}.name = {source.name!r}; expected letters, digits, '.', '-' or '_', another for each source"
            )
        if source.frame_stride is not None and source.frame_stride < 1:
            raise ConfigError(f"{where}.frame_stride = {source.frame_stride} is out of range; expected more than 0")
    if not mixture.sources:
        if mixture.stages:
            raise ConfigError("config.data.mixture.stages weigh sources, and config.data.mixture.sources is empty")
        return
    _check_weights("config.data.mixture.sources: weight", tuple(source.weight for source in mixture.sources), names)
    before = 0
    for i, stage in enumerate(mixture.stages):
        where = f"config.data.mixture.stages[{i}]"
        if stage.step <= before:
            raise ConfigError(f"{where}.step = {stage.step}; expected more than {before}, where the one before begins")
        before = stage.step
        _check_weights(f"{where}.weights", stage.weights, names)


def _check_buckets(buckets: BucketsConfig, mixture: MixtureConfig) -> None:
    """Raises ``ConfigError`` for names or sizes that make no buckets."""
    names, sizes = [bucket.name for bucket in buckets.sets], set()
    for i, bucket in enumerate(buckets.sets):
        where = f"config.data.buckets.sets[{i}]"
        if not _NAME.fullmatch(bucket.name) or names.index(bucket.name) != i:
            raise ConfigError(
                f"{where}.name = {bucket.name!r}; expected letters, digits, '.', '-' or '_', another for each bucket"
            )
        if min(bucket.canvas) < 1 or bucket.num_frames < 2:
            raise ConfigError(
                f"{where} has {bucket.num_frames} frames of {bucket.canvas}; expected pixels and 2 frames or more"
            )
        if (bucket.canvas, bucket.num_frames) in sizes:
            raise ConfigError(
                f"{where} ({bucket.name}) has the canvas and num_frames of another; leave one of them out"
            )
        sizes.add((bucket.canvas, bucket.num_frames))
    if buckets.sets and mixture.stages:
        raise ConfigError(
            "config.data.buckets.sets and config.data.mixture.stages exclude each other: the share of a bucket would "
            "change with each stage; start a run from the last (config.finetune.base) for the next stage"
        )


def _check_weights(where: str, weights: tuple[float, ...], names: list[str]) -> None:
    if len(weights) != len(names):
        raise ConfigError(f"{where} = {weights} has {len(weights)} entries; expected {len(names)}: {', '.join(names)}")
    if min(weights) < 0 or not any(weights):
        raise ConfigError(f"{where} = {weights}; expected 0 or more each, and one above 0")
