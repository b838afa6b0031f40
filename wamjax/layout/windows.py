"""Windows over time: what layers see that attend to nearby latent frames alone, and which tokens a recurrence reads.

A window narrows what a layout shows, between frames of video; it adds nothing. The result is an ordinary schedule, so
that kernels, pair counts and plans follow from it as from any other.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence

from wamjax.config.backbone import LayerAttention
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError
from wamjax.layout.layout import Layout, Pass
from wamjax.layout.parts import cut
from wamjax.layout.schedule import Rectangle, Schedule, Span, merge_spans
from wamjax.layout.segments import Role, Segment

_Piece = tuple[Span, int | None]  # tokens, and the latent frame they belong to; None for tokens of no frame


def layer_schedule(layout_pass: Pass, attention: LayerAttention) -> Schedule:
    """Returns what a layer of ``attention`` shows of ``layout_pass``; nothing where it is a recurrence.

    Raises:
      ConfigError: A window would cut a layout that shows video token by token.
    """
    schedule = layout_pass.schedule
    if attention.kind == "gated_delta":
        return Schedule(schedule.num_queries, schedule.num_keys, ())
    if attention.kind == "full":
        return schedule
    return _windowed(layout_pass.segments, layout_pass.past, schedule, attention.reach, attention.dilation)


def joint_schedule(layout_pass: Pass, attention: LayerAttention) -> Schedule:
    """Returns what the experts of a mixture attend to in a layer of which the video's has ``attention``.

    Where that is a recurrence, it is what the others see of one another.
    """
    if attention.kind != "gated_delta":
        return layer_schedule(layout_pass, attention)
    return schedule_beside(layout_pass, ("video", "shared"))


def schedule_beside(layout_pass: Pass, recurrent: Sequence[str]) -> Schedule:
    """Returns what experts other than ``recurrent`` see of one another, their tokens alone in the order of the pass."""
    spans = merge_spans(span for span, s in _placed(layout_pass.segments) if s.expert not in recurrent)
    return cut(layout_pass.schedule, spans, spans)


def token_spans(segments: Sequence[Segment]) -> tuple[Span, ...]:
    """Returns where tokens are that are no padding: what a recurrence reads, one after the other."""
    return merge_spans(span for span, segment in _placed(segments) if segment.role is not Role.PADDING)


def check_recurrence(config: RunConfig, layout: Layout) -> None:
    """Refuses a layout in which a recurrence would show a token more than the layout does.

    Raises:
      ConfigError: A recurrent stack has tokens that may not see others of its own before them.
    """
    if config.backbone is None or not config.backbone.block.is_recurrent:
        return
    own = [s for s in layout.segments if s.expert in ("shared", "video") and s.role is not Role.PADDING]
    for before, segment in itertools.combinations(own, 2):
        relation = layout.visibility.get((segment.role, before.role))
        if relation is None or not relation.admits(segment.order, before.order):
            raise ConfigError(
                f"config.backbone.block.attention has gated_delta layers, which would show {segment.role} tokens the "
                f"{before.role} tokens before them; config.layout.formulation={config.layout.formulation} hides those: "
                "use full or window layers, or formulation video or first_frame"
            )


@functools.lru_cache(maxsize=64)
def _windowed(
    segments: tuple[Segment, ...], past: tuple[Segment, ...], schedule: Schedule, reach: int, dilation: int
) -> Schedule:
    queries, keys = tuple(_pieces(segments)), tuple(_pieces(past + segments))
    rows: dict[tuple[Span, ...], list[Span]] = {}
    diagonals: list[Rectangle] = []
    for rectangle in schedule.rectangles:
        if rectangle.diagonal:
            if any(frame is not None and _overlaps(rectangle.queries, span) for span, frame in queries):
                raise ConfigError(
                    "config.backbone.block.attention has window layers, and video sees video token by token; set "
                    "config.layout.clean_context=block_causal"
                )
            diagonals.append(rectangle)
            continue
        for span, frame in queries:
            own = _overlaps(rectangle.queries, span)
            if own:
                near = [other for other, at in keys if _is_near(frame, at, reach, dilation)]
                seen = merge_spans(part for other in near for part in _overlaps(rectangle.keys, other))
                rows.setdefault(seen, []).extend(own)
    rectangles = [Rectangle(merge_spans(spans), seen) for seen, spans in rows.items()]
    ordered = sorted(rectangles + diagonals, key=lambda r: r.queries)
    return Schedule(schedule.num_queries, schedule.num_keys, tuple(ordered))


def _is_near(query: int | None, key: int | None, reach: int, dilation: int) -> bool:
    """Whether a token of latent frame ``query`` sees one of ``key``; tokens of no frame see and are seen."""
    if query is None or key is None:
        return True
    steps, between = divmod(abs(key - query), dilation)
    return not between and steps <= reach


def _placed(segments: Sequence[Segment]) -> Iterable[tuple[Span, Segment]]:
    """Yields the tokens of each segment in the sequence they form."""
    offset = 0
    for segment in segments:
        yield (offset, offset + segment.num_tokens), segment
        offset += segment.num_tokens


def _pieces(segments: Sequence[Segment]) -> Iterable[_Piece]:
    """Yields the tokens of every latent frame, and of every segment without frames."""
    for (start, stop), segment in _placed(segments):
        if segment.grid is None:
            yield (start, stop), None
            continue
        size = (stop - start) // segment.grid[0]
        for frame in range(segment.grid[0]):
            yield (start + frame * size, start + (frame + 1) * size), segment.first_frame + frame


def _overlaps(spans: Iterable[Span], span: Span) -> list[Span]:
    """Returns the parts of ``spans`` inside ``span``."""
    parts = [(max(start, span[0]), min(stop, span[1])) for start, stop in spans]
    return [(start, stop) for start, stop in parts if start < stop]
