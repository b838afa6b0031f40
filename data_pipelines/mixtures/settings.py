"""What ``config.data.mixture`` means for a run: the configuration of each source, and what they have in common.

Owns the resolution. All sources share one canvas, one set of action and state dims and one layout of tokens; they
differ in cameras, features and strides.
"""

from __future__ import annotations

import dataclasses

from data_pipelines.embodiments.apply import apply_embodiment
from wamjax.config.schema import RunConfig
from wamjax.config.sources import MixtureConfig, MixtureSource
from wamjax.errors import ConfigError

_INHERITED = ("embodiment", "views", "state_key", "action_key", "frame_stride", "filters")


def source_config(config: RunConfig, source: MixtureSource) -> RunConfig:
    """Returns the configuration of a run on one source alone.

    Raises:
      ConfigError: As ``apply_embodiment``, naming the source.
    """
    own = {name: getattr(source, name) for name in _INHERITED if getattr(source, name) is not None}
    data = dataclasses.replace(
        config.data, path=source.path, index=source.index, latents=source.latents, mixture=MixtureConfig(), **own
    )
    try:
        return apply_embodiment(dataclasses.replace(config, data=data))
    except ConfigError as error:
        raise ConfigError(f"source {source.name!r} of config.data.mixture: {error}") from error


def resolve_mixture(config: RunConfig) -> RunConfig:
    """Returns ``config`` with the views of each source written out, and all of them in ``config.data.views``.

    So the masks of a batch have a place for every view that some source has; a sample of another source says that it is
    missing. Itself where there is no mixture.

    Raises:
      ConfigError: As ``source_config``, or a source has another canvas.
    """
    mixture = config.data.mixture
    if not mixture.sources:
        return config
    resolved, views = [], {}
    for source in mixture.sources:
        data = source_config(config, source).data
        if data.canvas != config.data.canvas:
            raise ConfigError(
                f"source {source.name!r} of config.data.mixture has the canvas {data.canvas} (its embodiment "
                f"{data.embodiment}), config.data.canvas={config.data.canvas}: all sources share one"
            )
        resolved.append(dataclasses.replace(source, views=data.views))
        views.update(dict.fromkeys(data.views))
    mixture = dataclasses.replace(mixture, sources=tuple(resolved))
    return dataclasses.replace(config, data=dataclasses.replace(config.data, mixture=mixture, views=tuple(views)))


def number_embodiments(sources: tuple[MixtureSource, ...]) -> list[int]:
    """Returns the ``embodiment_id`` of each source: shared by those of one specification, else one of its own."""
    names = [source.embodiment or f"\0{source.name}" for source in sources]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return [numbers[name] for name in names]
