"""Windows in pixels as the samples of one run, and what lies between pixels and its model when it acts.

Owns the joining of encodings, fields and prompts. Encoders are ``patch_latents`` or ``clip_encoders``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from data_pipelines.latents.samples import SampleFields
from data_pipelines.pipeline import Pipeline
from data_pipelines.text.policy_prompts import PolicyPrompts
from wamjax.batch import WamBatch, batch_spec
from wamjax.config.schema import RunConfig
from wamjax.sampling.policy import LatentCodec, PictureEncoder, PromptTable


class WindowEncoders(Protocol):
    """What stands between pixels and what a model reads of them."""

    @property
    def codec(self) -> LatentCodec | PictureEncoder | None:
        """As a policy uses it; None for a model that reads pixels."""
        ...

    def encode_windows(self, batch: WamBatch) -> Mapping[str, npt.NDArray[Any]]:
        """Returns the encoded fields, batch-first, of windows with video."""
        ...


class WindowSamples:
    """Makes of windows in pixels the samples of one run.

    Attributes:
      encoders: Between pixels and what the model reads of them.
      prompts: As a policy reads them.
    """

    def __init__(
        self, config: RunConfig, pipeline: Pipeline, encoders: WindowEncoders, prompts: PromptTable | PolicyPrompts
    ) -> None:
        """Prepares.

        Args:
          config: The run.
          pipeline: Of ``pixel_windows(config)``.
          encoders: See above.
          prompts: Of the windows of ``pipeline``.

        Raises:
          ConfigError: As ``SampleFields``.
        """
        self.encoders, self.prompts, self._config = encoders, prompts, config
        self._recent: list[tuple[Any, Mapping[str, npt.NDArray[Any]]]] = []
        self._fields = SampleFields(config, pipeline, prompts if isinstance(prompts, PolicyPrompts) else None)

    def fields(self, batch: WamBatch) -> dict[str, npt.NDArray[Any]]:
        """Returns the fields in which samples differ from the windows of ``batch``, but for the text."""
        return {**self._encode(batch), **self._fields(batch)}

    def _encode(self, batch: WamBatch) -> Mapping[str, npt.NDArray[Any]]:
        """Encodes windows, or returns what was made of them just before: a sensitivity asks for two in turn, often."""
        for video, encoded in self._recent:
            if video is batch.video:
                return encoded
        encoded = self.encoders.encode_windows(batch)
        self._recent = [(batch.video, encoded), *self._recent][:2]
        return encoded

    def __call__(self, batch: WamBatch) -> WamBatch:
        """Returns the samples of the windows of ``batch``."""
        arrays = {name: getattr(batch, name) for name in vars(batch)}
        if batch.frame_mask is not None and self._config.backbone is not None:
            # A latent frame is real where the last of its frames is.
            arrays["frame_mask"] = batch.frame_mask[:, :: self._config.clip.stride[0]]
        arrays |= self.fields(batch)
        if isinstance(self.prompts, PromptTable):
            arrays["text"] = self.prompts.text[np.asarray(batch.prompt_id)].astype(jnp.bfloat16)
            arrays["embodiment_id"] = np.full(batch.size, self.prompts.embodiment_id, np.int32)
        wanted = vars(batch_spec(self._config, batch.size))
        return WamBatch(
            **{name: np.asarray(arrays[name], spec.dtype) for name, spec in wanted.items() if spec is not None}
        )
