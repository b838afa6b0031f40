"""Formulations of policies without video: actions denoised given pictures and a prompt."""

from __future__ import annotations

from wamjax.layout.layout import Layout
from wamjax.layout.segments import ALL, SAME, UP_TO, Role, Segment


def policy_layout(*, image_tokens: int, text_tokens: int, num_actions: int) -> Layout:
    """Returns Pi-0.5's layout: image tokens | text tokens | actions, noisy.

    Images and text see each other, actions see them and each other; nothing sees the actions but actions. So what does
    not change while actions are denoised is computed once.

    Args:
      image_tokens: Of all images.
      text_tokens: Of the prompt, padding included; which of them are seen is the batch's to say.
      num_actions: Action tokens, which share one timestep.

    Source: openpi, src/openpi/models/pi0.py, ``make_attn_mask``, ``embed_prefix`` and ``embed_suffix``.
    """
    prefix = (Role.IMAGE, Role.TEXT)
    image = Segment(role=Role.IMAGE, order=0, num_tokens=image_tokens, expert="prefix")
    text = Segment(role=Role.TEXT, order=0, num_tokens=text_tokens, expert="prefix")
    actions = Segment(
        role=Role.ACTION, order=1, num_tokens=num_actions, noised=True, time=0, has_loss=True, expert="action"
    )
    # Of one order, so that UP_TO is both ways among them and no relation looks ahead.
    seen = {(query, key): UP_TO for query in (*prefix, Role.ACTION) for key in prefix}
    return Layout((image, text, actions), {**seen, (Role.ACTION, Role.ACTION): SAME})


def image_layout(num_tokens: int) -> Layout:
    """Returns the layout of one image's tokens, all seeing all: what a vision tower computes."""
    return Layout((Segment(role=Role.IMAGE, order=0, num_tokens=num_tokens),), {(Role.IMAGE, Role.IMAGE): ALL})
