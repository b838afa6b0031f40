"""Latents without an autoencoder: patches of the canvas, and a random embedding for every prompt.

What ``wamjax data cache`` makes with frozen encoders, for backbones too small to read those (``experiments/sweeps``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy.typing as npt

from data_pipelines.latents.job import LatentJob, Worker
from data_pipelines.latents.manifest import MANIFEST_FILE, TRAIN, VALIDATION, Manifest, check_same, describe
from data_pipelines.latents.pipeline import NO_PROMPT, open_text_cache, prompts_to_embed
from data_pipelines.pipeline import NORMALISATION_FILE, build_pipeline
from wamjax.batch import WamBatch
from wamjax.config.clip import pixel_windows
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError
from wamjax.models.codec import PatchCodec
from wamjax.sampling.policy import PatchLatents, PromptTable

FINGERPRINTS = {"vae": "patches of pixels, 1", "text": "a random embedding per prompt, 1"}
_SHARD_WINDOWS, _BATCH_SIZE = 512, 32


class PatchEncoders:
    """The patch codec and the prompts' embeddings of one run."""

    def __init__(self, config: RunConfig) -> None:
        """Makes the encoders that ``config`` reads.

        Raises:
          ConfigError: The run has no backbone, or one that reads more than patches.
        """
        backbone, clip = config.backbone, config.clip
        if backbone is None or clip.stride[0] != 1 or backbone.image_width is not None:
            raise ConfigError(
                f"config.clip.stride={clip.stride} of {config.name}; patches are latents where a backbone without "
                "image branch reads every frame: set its first entry to 1"
            )
        channels = 3 * clip.stride[1] * clip.stride[2]
        if (backbone.in_channels, backbone.out_channels) != (channels, channels):
            raise ConfigError(
                f"config.backbone.in_channels={backbone.in_channels}, out_channels={backbone.out_channels}; patches of "
                f"config.clip.stride={clip.stride} have {channels}"
            )
        self._config, self._width = config, backbone.text_width
        self.codec = PatchLatents(PatchCodec(clip.stride, (clip.height, clip.width)))

    def encode_windows(self, batch: WamBatch) -> Mapping[str, npt.NDArray[Any]]:
        """Returns ``latents`` of windows with video, in bfloat16."""
        return {"latents": np.asarray(self.codec.encode(batch.video).astype(jnp.bfloat16))}

    def encode_prompts(self, prompts: Sequence[str]) -> list[npt.NDArray[Any]]:
        """Returns a standard normal embedding ``[l d]`` of each prompt, the same for equal prompts."""
        shape = (self._config.clip.text_tokens, self._width)
        seeds = [int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8]) for prompt in prompts]
        return [np.random.default_rng(seed).normal(size=shape).astype(ml_dtypes.bfloat16) for seed in seeds]

    def prompt_table(self, prompts: Sequence[str]) -> PromptTable:
        """Returns the prompts as a policy reads them, and none where training drops some."""
        negative = self.encode_prompts([NO_PROMPT])[0] if self._config.objective.prompt_dropout else None
        return PromptTable(text=np.stack(self.encode_prompts(prompts)), negative=negative)


def fill_patch_latents(config: RunConfig, out: Path) -> None:
    """Makes what is missing of the folder ``out`` of latents of ``config``.

    Raises:
      ConfigError: As ``PatchEncoders``, or ``out`` holds latents made with other settings.
      DataError: The dataset cannot be read.
    """
    encoders, pipeline = PatchEncoders(config), build_pipeline(pixel_windows(config), workdir=None)
    summary = pipeline.summary
    wanted = describe(
        config,
        pipeline.index,
        dataset={
            key: summary[key] for key in ("path", "fingerprint", "fps", "quarantined", "too_short", "episodes", "steps")
        },
        encoders=FINGERPRINTS,
        shard_windows=_SHARD_WINDOWS,
        prompts=pipeline.prompts,
    )
    out.mkdir(parents=True, exist_ok=True)
    if (out / MANIFEST_FILE).exists():
        check_same(Manifest.load(out), wanted, out)
    else:
        pipeline.normalisation.save(out / NORMALISATION_FILE)
        wanted.save(out)
    open_text_cache(out, FINGERPRINTS["text"]).embed(prompts_to_embed(wanted.prompts, config), encoders.encode_prompts)
    job = LatentJob(
        out,
        wanted,
        {TRAIN: pipeline.reader(pipeline.index.train), VALIDATION: pipeline.reader(pipeline.index.validation)},
        frames_per_latent=1,
        batch_size=_BATCH_SIZE,
        num_threads=config.data.num_threads,
    )
    for _ in job.run(Worker(), encoders.encode_windows):
        pass
