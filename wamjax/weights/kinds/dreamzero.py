"""DreamZero: Wan's transformer with action and state modules per embodiment, under original Wan's names.

Source: github.com/dreamzero0/dreamzero, groot/vla/model/dreamzero/modules/wan_video_dit_action_casual_chunk.py
(``CausalWanModel``) and groot/vla/configs/model/dreamzero/action_head/wan_flow_matching_action_tf.yaml. Published
checkpoints hold the transformer under ``action_head.model.`` beside the encoders and the autoencoder. Adapters of
fine-tuned checkpoints (LoRA) and the state conditioning of some forks (``state_cond_proj``) are not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from wamjax.config.systems import CategoryActionConfig
from wamjax.errors import DataError
from wamjax.models.action_transformers import CategoryActionTransformer, TeacherForced
from wamjax.nn.category import INIT
from wamjax.weights.kinds import wan_transformer
from wamjax.weights.kinds.kind import ModelKind
from wamjax.weights.recipe import Drawn, Made, Recipe
from wamjax.weights.rules import TensorRule, also_named, nested

# What the configuration means where a key is absent: the defaults of CausalWanModel.
DEFAULTS: Mapping[str, Any] = {
    "model_type": "t2v",
    "in_dim": 16,
    "dim": 2048,
    "ffn_dim": 8192,
    "freq_dim": 256,
    "text_dim": 4096,
    "out_dim": 16,
    "num_heads": 16,
    "num_layers": 32,
    "eps": 1e-6,
    "action_dim": 32,
    "max_state_dim": 64,
    "hidden_size": 1024,
    "num_frame_per_block": 1,
    "num_state_per_block": 1,
}
# One, whatever max_num_embodiments says: the class sets it so itself. Another number is ours to say.
_NUM_CATEGORIES = "num_categories"
_REQUIRED_INPUTS = ("x", "clean_x", "timestep", "action", "timestep_action", "state", "context")
_PREFIX = "action_head.model."  # in checkpoints of the whole policy
# Ours -> the reference's: linear layers per category, whose tensors are W [category in out] and b [category out].
_LAYERS = {
    "action_encoder.lift": "action_encoder.W1",
    "action_encoder.mix": "action_encoder.W2",
    "action_encoder.out": "action_encoder.W3",
    "state_encoder.hidden": "state_encoder.layer1",
    "state_encoder.out": "state_encoder.layer2",
    "action_decoder.hidden": "action_decoder.layer1",
    "action_decoder.out": "action_decoder.layer2",
}


def parse_config(values: Mapping[str, Any]) -> CategoryActionConfig:
    """Returns the configuration of a ``config.json``: of ``CausalWanModel``, or of a whole policy that holds one.

    Raises:
      ConfigError: A value is not supported.
    """
    policy = values.get("action_head_cfg")
    if isinstance(policy, Mapping):
        values = policy.get("config", {}).get("diffusion_model_cfg", {})
    given = {**DEFAULTS, **values}
    # Every type but text-to-video reads an image here, also the 5B backbone, which Wan itself has without.
    if given["model_type"] == "ti2v":
        given["model_type"] = "i2v"
    return CategoryActionConfig(
        video=wan_transformer.parse_config(given),
        action_dim=given["action_dim"],
        state_dim=given["max_state_dim"],
        hidden_width=given["hidden_size"],
        num_categories=given.get(_NUM_CATEGORIES, 1),
        frames_per_block=given["num_frame_per_block"],
        states_per_block=given["num_state_per_block"],
    )


def rules(config: CategoryActionConfig, naming: str) -> tuple[TensorRule, ...]:
    """Returns how each parameter is stored; there is one naming."""
    assert naming == "original", naming
    found = [
        TensorRule(path=f"{ours}.{leaf}", name=f"{theirs}.{tensor}")
        for ours, theirs in _LAYERS.items()
        for leaf, tensor in (("kernel", "W"), ("bias", "b"))
    ]
    video = nested(wan_transformer.rules(config.video, naming), path="video.")
    return also_named((*found, *video), _PREFIX)


def reference_config(backbone: Mapping[str, Any], options: Mapping[str, int]) -> dict[str, Any]:
    """Returns ``CausalWanModel``'s configuration of a Wan backbone."""
    video = {**wan_transformer.DEFAULTS, **wan_transformer.diffusers_config(backbone)}
    return {
        "_class_name": "CausalWanModel",
        "model_type": "t2v" if video["image_dim"] is None else "i2v",
        "dim": video["num_attention_heads"] * video["attention_head_dim"],
        "num_heads": video["num_attention_heads"],
        "in_dim": video["in_channels"],
        "out_dim": video["out_channels"],
        **{key: video[key] for key in ("patch_size", "ffn_dim", "num_layers", "freq_dim", "text_dim", "eps")},
        # Kept where the backbone has what the class does not name: another image encoder, positions, a missing norm.
        **{key: video[key] for key in ("image_dim", "added_kv_proj_dim", "pos_embed_seq_len", "cross_attn_norm")},
        **options,
    }


def made(config: CategoryActionConfig) -> dict[str, Made]:
    """Returns how the action modules are made: as their class draws them, whatever the backbone."""
    del config
    kernel, bias = Drawn(INIT, "normal, deviation 0.02"), Drawn(jax.nn.initializers.zeros, "zeros")
    return {f"{layer}.{leaf}": how for layer in _LAYERS for leaf, how in (("kernel", kernel), ("bias", bias))}


def outputs(module: CategoryActionTransformer, inputs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Runs the model as the reference's ``forward`` is called in training (teacher forcing, with actions).

    Args:
      module: The model.
      inputs: ``x`` and ``clean_x`` [b c t h w], ``timestep`` [b t], ``action`` [b a u], ``timestep_action`` [b a],
        ``state`` [b s p], ``context`` [b l c], optionally ``y`` [b c t h w] (channels beside both), ``clip_feature``
        [b m c], ``aug_t`` [b t] and ``embodiment_id`` [b]; the reference uses embodiment 0 whatever it says.

    Returns:
      ``video_noise_pred`` [b c t h w], ``action_noise_pred`` [b a u], and ``out``, both as vectors [b v] one after the
      other.

    Raises:
      DataError: An input is missing, or sizes do not fit.
    """
    missing = [name for name in _REQUIRED_INPUTS if name not in inputs]
    if missing:
        raise DataError(f"inputs.npz has no {missing[0]!r}; dreamzero takes {', '.join(_REQUIRED_INPUTS)}")
    clean, noisy = (
        rearrange(
            jnp.concatenate([inputs[name], inputs["y"]], axis=1) if "y" in inputs else inputs[name],
            "b c t h w -> b t h w c",
        )
        for name in ("clean_x", "x")
    )
    batch_size, timestep = clean.shape[0], inputs["timestep"]
    has_choice = module.config.num_categories > 1 and "embodiment_id" in inputs
    video, actions = module(
        TeacherForced(
            clean=clean,
            noisy=noisy,
            clean_ids=inputs.get("aug_t", jnp.zeros_like(timestep)),
            noisy_ids=timestep,
            actions=inputs["action"],
            action_ids=inputs["timestep_action"],
            states=inputs["state"],
            category=inputs["embodiment_id"] if has_choice else jnp.zeros(batch_size, jnp.int32),
        ),
        inputs["context"],
        image=inputs.get("clip_feature"),
    )
    video = rearrange(video, "b t h w c -> b c t h w")
    out = jnp.concatenate([video.reshape(batch_size, -1), actions.reshape(batch_size, -1)], axis=1)
    return {"video_noise_pred": video, "action_noise_pred": actions, "out": out}


KIND = ModelKind(
    class_name="dreamzero",
    class_aliases=("CausalWanModel",),
    parse_config=parse_config,
    build=CategoryActionTransformer,
    rules=rules,
    namings=("original",),
    outputs=outputs,
    ignored={
        "action_head.text_encoder.*": "a model of its own: UMT5EncoderModel",
        "action_head.image_encoder.*": "a model of its own: CLIPVisionModel",
        "action_head.vae.*": "a model of its own: AutoencoderKLWan",
    },
    recipe=Recipe(
        base="WanTransformer3DModel",
        path="video.",
        own_tensor="*action_encoder.W1.W",
        # Blocks of two latent frames: the paper's and the published checkpoints'.
        options={
            **{key: DEFAULTS[key] for key in ("action_dim", "max_state_dim", "hidden_size")},
            _NUM_CATEGORIES: 1,
            "num_frame_per_block": 2,
        },
        reference_config=reference_config,
        made=made,
    ),
)
