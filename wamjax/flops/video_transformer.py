"""FLOPs of a video transformer by itself, of sizes alone: no run, no layout."""

from __future__ import annotations

from wamjax.config.backbone import VideoTransformerConfig
from wamjax.config.schema import FinetuneConfig
from wamjax.flops.backbone import Anatomy, Work, needed_attention, tally_model
from wamjax.flops.parameters import video_parameters


def video_transformer_flops(
    config: VideoTransformerConfig,
    *,
    tokens: int,
    text_tokens: int,
    image_tokens: int = 0,
    slots: int = 1,
    pairs: int | None = None,
    patch_tokens: int | None = None,
    head_tokens: int | None = None,
) -> dict[str, int]:
    """Returns the forward FLOPs of a video transformer by component.

    Args:
      config: The model, its layers all alike.
      tokens: Tokens that go through the blocks.
      text_tokens: Text tokens, padding included where it is attended.
      image_tokens: Tokens of all images of a sample.
      slots: Timesteps that are embedded: 1, one per latent frame, or one per token.
      pairs: Attended query-key pairs of self-attention; None for all of them.
      patch_tokens: Tokens that are embedded from latents; None for ``tokens``.
      head_tokens: Tokens that the head predicts; None for ``tokens``.
    """
    anatomy = Anatomy(block=config.block, num_layers=config.num_layers, parameters=video_parameters(config))
    work = Work(
        tokens=tokens,
        patches=tokens if patch_tokens is None else patch_tokens,
        predicted=tokens if head_tokens is None else head_tokens,
        text=text_tokens,
        image=image_tokens if config.image_width is not None else 0,
        slots=slots,
        attention=(needed_attention(tokens, tokens**2 if pairs is None else pairs, text_tokens, image_tokens),),
    )
    return tally_model([(anatomy, work)], FinetuneConfig()).forward
