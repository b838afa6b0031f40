"""The video transformer: latents, timesteps, text (and an image) in; the model's prediction for every latent out.

One module is Wan 2.1, Wan 2.2 and Cosmos-Predict, by configuration. Embedding, blocks and head are apart: ``__call__``
is the plain video model of one noisy clip, while a formulation of its own embeds tokens, runs them through ``run`` on
any pass of a layout with keys of the past, and applies ``head``.

Layout of arrays: latents and predictions channels-last ``[b t h w c]`` in latents, not in tokens; a patch's values are
in the order (frame, row, column, channel).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from wamjax.config.backbone import TwoExpertConfig, VideoTransformerConfig
from wamjax.errors import DataError
from wamjax.layout import Pass, video_layout
from wamjax.models.block import NUM_TABLE_VECTORS, Conditioning
from wamjax.models.stack import run_blocks, stack_blocks
from wamjax.nn.conditioning import (
    ImageEmbedding,
    LearnedPositions,
    NormedTimeEmbedding,
    TimeEmbedding,
    make_text_embedding,
)
from wamjax.nn.init import named
from wamjax.nn.linear import Linear
from wamjax.nn.modulation import TIMESTEP_IDS, LowRankModulation, even_runs, modulate
from wamjax.nn.multihead import KeysValues
from wamjax.nn.norm import layer_norm
from wamjax.nn.rotary import rotary_table
from wamjax.parallel.rules import constrain
from wamjax.types import PRNGKey, Tokens

NUM_HEAD_VECTORS = 2  # shift and scale


class VideoTransformer(nnx.Module):
    """A transformer over the tokens of a latent video.

    Attributes:
      patch_embed: ``[patch_channels d]``.
      head_out: ``[d out_patch_channels]``; None, as the head's modulation, of a model that predicts no video.
      blocks: The stack; every parameter has a layer dim in front.
    """

    def __init__(self, key: PRNGKey, config: VideoTransformerConfig, *, has_head: bool = True) -> None:
        """Makes the model of ``config``; without a head it is read after its last block alone (``run``)."""
        keys = jax.random.split(key, 8)
        self.config, block = config, config.block
        width, dtype = block.width, block.compute_dtype
        use_bias = config.use_patch_bias
        self.patch_embed = Linear(
            keys[0], (config.patch_channels, width), (None, "embed"), dtype=dtype, use_bias=use_bias
        )
        self.text_embedding = nnx.data(
            make_text_embedding(
                keys[1], config.text_embedding, config.text_width, block.context_width or width, dtype=dtype
            )
        )
        self.image_embedding = nnx.data(None)
        if config.image_width is not None:
            self.image_embedding = ImageEmbedding(
                keys[2], config.image_width, width, num_positions=config.image_positions, dtype=dtype
            )
        self.learned_positions = nnx.data(None)
        if config.learned_positions is not None:
            self.learned_positions = LearnedPositions(keys[3], config.learned_positions, width)
        is_table = block.modulation == "table"
        self.time_embedding = (
            TimeEmbedding(keys[4], config.time_width, width, NUM_TABLE_VECTORS)
            if is_table
            else NormedTimeEmbedding(keys[4], width)
        )
        self.blocks = stack_blocks(keys[5], block, config.num_layers)
        self.head_modulation = self.head_out = nnx.data(None)
        if not has_head:
            return
        self.head_modulation = (
            named(keys[6], jax.nn.initializers.normal(width**-0.5), (NUM_HEAD_VECTORS, width), (None, None))
            if is_table
            else LowRankModulation(keys[6], width, block.modulation_rank, NUM_HEAD_VECTORS)
        )
        self.head_out = Linear(
            keys[7], (width, config.out_patch_channels), ("embed", None), dtype=dtype, scale=0.0, use_bias=use_bias
        )

    def __call__(
        self,
        latents: jax.Array,
        ids: jax.Array,
        text: jax.Array,
        *,
        image: jax.Array | None = None,
        text_mask: jax.Array | None = None,
        padding_mask: jax.Array | None = None,
        fps: float | jax.Array | None = None,
        layout_pass: Pass | None = None,
    ) -> jax.Array:
        """Predicts what the model was trained to predict (a velocity, or what EDM calls F).

        Args:
          latents: ``[b t h w c]``, condition channels included.
          ids: Timestep ids in [0, 1000] (Cosmos: whatever its schedule conditions on): ``[b]``, one per latent frame
            of tokens ``[b t]``, or one per token ``[b n]`` in sequence order.
          text: ``[b l text_width]`` tokens of the text encoder.
          image: ``[b m image_width]`` tokens of the image encoder; the images of a sample one after the other.
          text_mask: bool ``[b l]`` of text tokens that are seen; None for all. Wan shows its padding.
          padding_mask: ``[b t h w 1]``, for models with such a channel.
          fps: Frame rate of the clip; None for the rate that one frame is one step of the frame axis.
          layout_pass: Which token sees which; None for all. Its tokens are the clip's.

        Returns:
          ``[b t h w out_channels]`` in fp32.

        Raises:
          DataError: Shapes do not fit the configuration.
        """
        grid = self.check(latents, padding_mask)
        layout_pass = layout_pass or video_layout(grid).full_pass()
        num_tokens = grid[0] * grid[1] * grid[2]
        if layout_pass.num_tokens != num_tokens:
            raise DataError(f"the layout holds {layout_pass.num_tokens} tokens and the latents {num_tokens}")
        patches, slots = self._patches(latents, padding_mask), _slots(ids, grid, latents.shape[0])
        predicted = self.predict(patches, slots, text, layout_pass, image=image, text_mask=text_mask, fps=fps)
        return self.unpatch(predicted, grid)

    def predict(
        self,
        patches: jax.Array,
        ids: jax.Array,
        text: jax.Array,
        layout_pass: Pass,
        *,
        image: jax.Array | None = None,
        text_mask: jax.Array | None = None,
        fps: float | jax.Array | None = None,
    ) -> jax.Array:
        """Predicts from patches, padding included, what ``__call__`` predicts from latents.

        Args:
          patches: ``[b n patch_channels]``, the tokens of ``layout_pass``.
          ids: ``[b slots]`` timestep ids; the slots share the tokens evenly and in order.
          text: As for ``__call__``, and so the rest.
          layout_pass: Which token sees which.
          image: Image tokens.
          text_mask: Which text tokens are seen.
          fps: Frame rate.

        Returns:
          fp32 ``[b n out_patch_channels]``.
        """
        conditioning = self.condition(ids, text, layout_pass, image=image, text_mask=text_mask, fps=fps)
        tokens, _ = self.run(self.patch_embed(patches), layout_pass, conditioning)
        return self.head(tokens, conditioning)

    def embed(self, latents: jax.Array, padding_mask: jax.Array | None = None) -> Tokens:
        """Returns the tokens ``[b n d]`` of ``latents`` ``[b t h w c]``."""
        return self.patch_embed(self._patches(latents, padding_mask))

    def condition(
        self,
        ids: jax.Array,
        text: jax.Array,
        layout_pass: Pass,
        *,
        runs: tuple[tuple[int, int], ...] | None = None,
        image: jax.Array | None = None,
        text_mask: jax.Array | None = None,
        fps: float | jax.Array | None = None,
    ) -> Conditioning:
        """Returns what the blocks read besides their tokens.

        Args:
          ids: ``[b slots]`` timestep ids.
          text: ``[b l text_width]``.
          layout_pass: The pass whose tokens are placed.
          runs: (slot, number of tokens) in sequence order; None if the slots share the tokens evenly and in order.
          image: ``[b m image_width]``.
          text_mask: bool ``[b l]``.
          fps: Frame rate of the clip.

        Raises:
          DataError: Image tokens are missing, superfluous or of the wrong number.
        """
        config = self.config
        embedding, modulation = self.time_embedding(ids)
        step = 1.0 if fps is None else config.rotary.base_fps / fps
        positions = self.learned_positions
        return Conditioning(
            embedding=embedding,
            modulation=modulation,
            runs=even_runs(ids.shape[1], layout_pass.num_tokens) if runs is None else runs,
            rotation=rotary_table(
                layout_pass,
                config.block.head_dim,
                config.rotary.theta,
                scale=config.rotary.scale,
                frame_step=step,
            ),
            text=text if self.text_embedding is None else self.text_embedding(text),
            text_mask=text_mask,
            image=self._embed_image(image),
            positions=None if positions is None else positions(layout_pass.positions().astype(int)),
        )

    def run(
        self,
        tokens: Tokens,
        layout_pass: Pass,
        conditioning: Conditioning,
        past: KeysValues | None = None,
        *,
        return_cache: bool = False,
    ) -> tuple[Tokens, KeysValues | None]:
        """Runs the blocks over ``tokens`` ``[b n d]`` of any pass; arguments and results as ``block.run_blocks``."""
        x = constrain(tokens.astype(self.config.block.compute_dtype), "batch", "stream", None)
        return run_blocks(
            self.blocks, x, layout_pass, conditioning, past, remat=self.config.remat, return_cache=return_cache
        )

    def head(self, tokens: Tokens, conditioning: Conditioning) -> jax.Array:
        """Returns fp32 patches ``[b n out_patch_channels]`` of the blocks' output."""
        assert self.head_out is not None, "a model that predicts no video has no head"
        return self.head_out(self.modulate_out(tokens, conditioning)).astype(jnp.float32)

    def modulate_out(self, tokens: Tokens, conditioning: Conditioning) -> jax.Array:
        """Returns the blocks' output ``[b n d]`` normed and modulated in fp32, as a linear head reads it."""
        assert self.head_modulation is not None, "a model that predicts no video has no head"
        if isinstance(self.head_modulation, LowRankModulation):
            vectors = self.head_modulation(conditioning.embedding, conditioning.modulation)
        else:
            vectors = conditioning.embedding[:, :, None] + self.head_modulation[...]
        normed = layer_norm(tokens, self.config.block.norm_eps)
        return modulate(normed, vectors[:, :, 0], vectors[:, :, 1], conditioning.runs)

    def unpatch(self, patches: jax.Array, grid: tuple[int, int, int]) -> jax.Array:
        """Returns ``[b t h w c]`` of patches ``[b n (pt ph pw c)]`` on ``grid``, in patches."""
        (t, h, w), (pt, ph, pw) = grid, self.config.patch
        pattern = "b (t h w) (pt ph pw c) -> b (t pt) (h ph) (w pw) c"
        return rearrange(patches, pattern, t=t, h=h, w=w, pt=pt, ph=ph, pw=pw)

    def _patches(self, latents: jax.Array, padding_mask: jax.Array | None) -> jax.Array:
        if padding_mask is not None:
            latents = jnp.concatenate([latents, padding_mask.astype(latents.dtype)], axis=-1)
        return patchify(latents, self.config.patch)

    def _embed_image(self, image: jax.Array | None) -> jax.Array | None:
        if (image is None) != (self.image_embedding is None):
            has = "needs image tokens and got none" if image is None else "has no image branch and got image tokens"
            raise DataError(f"this model {has} (config image_width={self.config.image_width})")
        if image is None or self.image_embedding is None:
            return None
        wanted = self.config.image_positions
        if wanted is not None and image.shape[1] != wanted:
            raise DataError(f"{image.shape[1]} image tokens; this model has positions for {wanted} (all its images)")
        return self.image_embedding(image)

    def check(self, latents: jax.Array, padding_mask: jax.Array | None = None) -> tuple[int, int, int]:
        """Returns the grid of patches (frames, rows, columns) of ``latents`` ``[b t h w c]``.

        Raises:
          DataError: They do not fit the configuration.
        """
        config, (sizes, channels) = self.config, (latents.shape[1:4], latents.shape[4])
        if channels != config.in_channels:
            raise DataError(
                f"latents have {channels} channels (condition channels included); this model takes {config.in_channels}"
            )
        if any(size % step for size, step in zip(sizes, config.patch, strict=True)):
            raise DataError(f"latents of {sizes} (frames, rows, columns) are no multiple of the patch {config.patch}")
        if config.padding_mask != (padding_mask is not None):
            raise DataError(f"padding_mask is {'missing' if config.padding_mask else 'given and has no channel'}")
        grid = tuple(size // step for size, step in zip(sizes, config.patch, strict=True))
        limits = config.learned_positions
        if limits is not None and any(size > limit for size, limit in zip(grid, limits, strict=True)):
            raise DataError(f"a grid of {grid} patches is larger than the {limits} positions this model has learned")
        return grid[0], grid[1], grid[2]


class TwoExpertTransformer(nnx.Module):
    """Two video transformers, one for high noise and one for low (Wan 2.2 A14B).

    Source: Wan 2.2, ``WanT2V._prepare_model_for_timestep``.
    """

    def __init__(self, key: PRNGKey, config: TwoExpertConfig) -> None:
        """Makes both experts."""
        high, low = jax.random.split(key)
        self.config = config
        self.high_noise = VideoTransformer(high, config.expert)
        self.low_noise = VideoTransformer(low, config.expert)

    def __call__(self, latents: jax.Array, ids: jax.Array, text: jax.Array) -> jax.Array:
        """Predicts with the expert for the noise level; arguments and result as ``VideoTransformer``.

        The samples of one call share their noise level: the largest of ``ids`` decides for all. Only the chosen expert
        runs.
        """
        is_high = jnp.max(ids) >= self.config.boundary * TIMESTEP_IDS
        return jax.lax.cond(
            is_high, lambda: self.high_noise(latents, ids, text), lambda: self.low_noise(latents, ids, text)
        )


def patchify(latents: jax.Array, patch: tuple[int, int, int]) -> jax.Array:
    """Returns patches ``[b n (pt ph pw c)]`` of ``latents`` ``[b t h w c]``."""
    pt, ph, pw = patch
    return rearrange(latents, "b (t pt) (h ph) (w pw) c -> b (t h w) (pt ph pw c)", pt=pt, ph=ph, pw=pw)


def _slots(ids: jax.Array, grid: tuple[int, int, int], batch_size: int) -> jax.Array:
    """Returns timestep ids ``[b slots]``: one slot for the clip, one per frame or one per token."""
    slots = ids[:, None] if ids.ndim == 1 else ids
    wanted = (1, grid[0], grid[0] * grid[1] * grid[2])
    if slots.ndim != 2 or slots.shape[0] != batch_size or slots.shape[1] not in wanted:
        raise DataError(
            f"timesteps of shape {ids.shape}; expected ({batch_size},), or ({batch_size}, k) with k = {wanted[1]} "
            f"latent frames or {wanted[2]} tokens"
        )
    return slots
