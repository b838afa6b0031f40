"""Formulations that denoise no video: actions from pictures and a prompt, answers to queries, actions from frames."""

from __future__ import annotations

from wamjax.layout.layout import Layout
from wamjax.layout.segments import ALL, CAUSAL, SAME, UP_TO, Role, Segment, Visibility, window


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


def query_layout(*, steps: int, observed: int, asked: int, ahead: int) -> Layout:
    """Returns GR-1's layout: what every step shows | a query for its action | queries for a later frame.

    What is shown is causal, token by token through all steps. A query sees all that is shown up to its step, and
    nothing sees a query. The last ``ahead`` steps have no queries for frames, which lie beyond the sample.

    Args:
      steps: Steps of an episode.
      observed: Tokens of what one step shows.
      asked: Queries of a later frame, of all cameras.
      ahead: Steps to that frame.

    Source: bytedance/GR-1, models/gr1.py. What differs: streams lie one after the other, where GR-1's steps do, which
    changes nothing; and it has queries for frames beyond the sample, whose answers carry no loss.
    """
    if not 0 < ahead < steps:
        raise ValueError(f"ahead={ahead} of steps={steps}; expected a later frame within the sample")

    def stream(role: Role, count: int, num_steps: int, *, has_loss: bool = True) -> list[Segment]:
        return [
            Segment(role=role, order=step, num_tokens=count, start=step * count, has_loss=has_loss)
            for step in range(num_steps)
        ]

    segments = [
        *stream(Role.OBSERVATION, observed, steps, has_loss=False),
        *stream(Role.ACTION, 1, steps),
        *stream(Role.QUERY, asked, steps - ahead),
    ]
    visibility: Visibility = {
        (Role.OBSERVATION, Role.OBSERVATION): CAUSAL,
        (Role.ACTION, Role.OBSERVATION): UP_TO,
        (Role.QUERY, Role.OBSERVATION): UP_TO,
    }
    return Layout(tuple(segments), visibility)


def frame_pairs_layout(*, num_pairs: int, actions_per_pair: int) -> Layout:
    """Returns the layout of an inverse-dynamics model: frames | the actions between each two of them.

    An action sees the frame before it and the one after it, and nothing else. A frame counts as one token; convolutions
    see what the table says, and nothing attends.

    Args:
      num_pairs: Pairs of consecutive frames.
      actions_per_pair: Actions executed between the two.

    Source: UniPi (arXiv 2302.00111).
    """
    if num_pairs < 1 or actions_per_pair < 1:
        raise ValueError(f"num_pairs={num_pairs} and actions_per_pair={actions_per_pair} must both be 1 or more")
    frames = [Segment(role=Role.OBSERVATION, order=i, num_tokens=1, start=i) for i in range(num_pairs + 1)]
    actions = [
        Segment(role=Role.ACTION, order=i + 1, num_tokens=actions_per_pair, start=i * actions_per_pair, has_loss=True)
        for i in range(num_pairs)
    ]
    seen = {(Role.OBSERVATION, Role.OBSERVATION): SAME, (Role.ACTION, Role.OBSERVATION): window(1)}
    return Layout((*frames, *actions), seen)
