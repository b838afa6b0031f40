"""Samples without frozen encoders: patches of pixels as latents or features, random embeddings of prompts, bytes.

What ``wamjax data cache`` makes with the published encoders, for models too small to read those
(``experiments/sweeps``). Every stand-in is fixed and exact, and named in the folder's manifest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy.typing as npt
from einops import rearrange

from data_pipelines.latents.job import LatentJob, Worker
from data_pipelines.latents.manifest import MANIFEST_FILE, TRAIN, VALIDATION, Manifest, check_same, describe
from data_pipelines.latents.pipeline import NO_PROMPT, open_text_cache, prompts_to_embed
from data_pipelines.latents.samples import split_pictures
from data_pipelines.pipeline import NORMALISATION_FILE, Pipeline, build_pipeline
from data_pipelines.text.policy_prompts import PolicyPrompts
from launch.window_samples import WindowSamples
from wamjax.batch import WamBatch, batch_spec
from wamjax.config.pixel_windows import num_pictures, pixel_windows
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError
from wamjax.flops.precompute import PrecomputeLedger
from wamjax.flops.utilisation import Denominator
from wamjax.models.codec import PatchCodec
from wamjax.sampling.policy import PatchLatents, PromptTable
from wamjax.training.precompute_log import PrecomputeLog

FINGERPRINTS = {"vae": "patches of pixels, 1", "text": "a random embedding per prompt, 1"}
_OF_POLICY = {"images": "pixels, 1", "text": "bytes of UTF-8, 1"}
LEDGER_FOLDER = "worker-0000"  # as of the first of several processes that run encoders
_NUM_BYTES = 256
_SHARD_WINDOWS, _BATCH_SIZE = 512, 32


class PatchFeatures:
    """Patches of a picture in place of a frozen image encoder's tokens (``sampling.policy.PictureEncoder``)."""

    def __init__(self, patch_size: int) -> None:
        self._patch = patch_size

    def encode_pictures(self, pictures: Any) -> npt.NDArray[np.float32]:
        """Returns ``[b v n+1 c]`` of pictures uint8 ``[b v H W 3]``: the mean of a picture's patches, then these."""
        pattern = "b v (h p) (w q) c -> b v (h w) (p q c)"
        patches = rearrange(np.asarray(pictures, np.float32) / 127.5 - 1.0, pattern, p=self._patch, q=self._patch)
        return np.concatenate([patches.mean(2, keepdims=True), patches], axis=2)


class PatchEncoders:
    """What stands for the frozen encoders of one run.

    Attributes:
      codec: Between pixels and what the model reads of them; None for a vision-language-action model, which reads
        pixels.
      fingerprints: What stands for what, for the manifest.
    """

    def __init__(self, config: RunConfig) -> None:
        """Makes the encoders that ``config`` reads.

        Raises:
          ConfigError: The model reads more than patches, or patches of another size.
        """
        self._config = config
        self._text = batch_spec(config, 1).text
        self.codec: PatchLatents | PatchFeatures | None = None
        self.fingerprints = FINGERPRINTS
        if config.vla is not None:
            self.fingerprints = _OF_POLICY
            if config.vla.vocab_size < _NUM_BYTES:
                raise ConfigError(
                    f"config.vla.vocab_size={config.vla.vocab_size}; prompts are bytes here: make it {_NUM_BYTES} or "
                    "more"
                )
        elif config.gpt is not None:
            if config.gpt.image_width != config.gpt.patch_values:
                raise ConfigError(
                    f"config.gpt.image_width={config.gpt.image_width}; patches of config.gpt.patch_size="
                    f"{config.gpt.patch_size} have {config.gpt.patch_values}"
                )
            self.codec = PatchFeatures(config.gpt.patch_size)
        else:
            self.codec = _patch_latents(config)

    def encode_windows(self, batch: WamBatch) -> Mapping[str, npt.NDArray[Any]]:
        """Returns what encoders make of windows with video: ``latents`` or ``image``, in bfloat16."""
        if isinstance(self.codec, PatchFeatures):
            steps = batch.video[:, :-1]
            pictures = split_pictures(steps, num_pictures(self._config))
            features = self.codec.encode_pictures(rearrange(pictures, "b s v h w c -> (b s) v h w c"))
            image = rearrange(features, "(b s) v n c -> b (s v n) c", s=steps.shape[1])
            return {"image": image.astype(ml_dtypes.bfloat16)}
        if self.codec is None:
            return {}
        video = batch.video
        if num_pictures(self._config):
            # Now and later, every picture a clip of its own.
            pictures = split_pictures(video[:, :2], num_pictures(self._config))
            video = rearrange(pictures, "b f v h w c -> (b f v) 1 h w c")
        latents = np.asarray(self.codec.encode(video).astype(jnp.bfloat16))
        return {"latents": latents.reshape(batch.size, -1, *latents.shape[2:])}

    def encode_prompts(self, prompts: Sequence[str]) -> list[npt.NDArray[Any]]:
        """Returns a standard normal embedding ``[l d]`` of each prompt, the same for equal prompts."""
        assert self._text is not None, "this model reads token ids"
        seeds = [int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8]) for prompt in prompts]
        shape = self._text.shape[1:]
        return [np.random.default_rng(seed).normal(size=shape).astype(ml_dtypes.bfloat16) for seed in seeds]

    def prompt_table(self, prompts: Sequence[str]) -> PromptTable:
        """Returns the prompts' embeddings as a policy reads them, and that of none where training drops some."""
        negative = self.encode_prompts([NO_PROMPT])[0] if self._config.objective.prompt_dropout else None
        return PromptTable(text=np.stack(self.encode_prompts(prompts)), negative=negative)

    def prompts(self, pipeline: Pipeline) -> PromptTable | PolicyPrompts:
        """Returns the prompts of the windows of ``pipeline`` as a policy reads them."""
        vla = self._config.vla
        if vla is None:
            return self.prompt_table(pipeline.prompts)
        return PolicyPrompts(
            pipeline.prompts,
            lambda text: list(text.encode()),
            num_tokens=vla.text_tokens,
            num_state_dims=pipeline.codec.layout.num_state_dims,
        )


def are_patches(manifest: Manifest) -> bool:
    """Whether no encoder made the samples that ``manifest`` describes."""
    return manifest.encoders in (FINGERPRINTS, _OF_POLICY)


def patch_samples(config: RunConfig, pipeline: Pipeline) -> WindowSamples:
    """Returns what makes samples of the windows of ``pipeline``, which is of ``pixel_windows(config)``.

    Raises:
      ConfigError: As ``PatchEncoders`` and ``SampleFields``.
    """
    encoders = PatchEncoders(config)
    return WindowSamples(config, pipeline, encoders, encoders.prompts(pipeline))


def _patch_latents(config: RunConfig) -> PatchLatents:
    """Returns the patch codec of a backbone."""
    backbone, clip = config.backbone, config.clip
    if backbone is None or clip.stride[0] != 1 or backbone.image_width is not None:
        raise ConfigError(
            f"config.clip.stride={clip.stride} of {config.name}; patches are latents where a backbone without image "
            "branch reads every frame: set its first entry to 1"
        )
    channels = 3 * clip.stride[1] * clip.stride[2]
    beside = int(config.layout.formulation == "latent_frames")  # which says what is given
    if (backbone.in_channels, backbone.out_channels) != (channels + beside, channels):
        raise ConfigError(
            f"config.backbone.in_channels={backbone.in_channels}, out_channels={backbone.out_channels}; patches of "
            f"config.clip.stride={clip.stride} have {channels}"
        )
    return PatchLatents(PatchCodec(clip.stride, (clip.height, clip.width)))


def fill_patch_latents(config: RunConfig, out: Path) -> None:
    """Makes what is missing of the folder ``out`` of samples of ``config``.

    Its ledger counts samples and seconds, as that of encoders does; no encoder runs, so that there are no FLOPs.

    Raises:
      ConfigError: As ``patch_samples``, or ``out`` holds samples made with other settings.
      DataError: The dataset cannot be read.
    """
    pipeline = build_pipeline(pixel_windows(config), workdir=None)
    encoders, summary = PatchEncoders(config), pipeline.summary
    samples = WindowSamples(config, pipeline, encoders, encoders.prompts(pipeline))
    wanted = describe(
        config,
        pipeline.index,
        dataset={
            key: summary[key] for key in ("path", "fingerprint", "fps", "quarantined", "too_short", "episodes", "steps")
        },
        encoders=encoders.fingerprints,
        shard_windows=_SHARD_WINDOWS,
        prompts=pipeline.prompts,
    )
    out.mkdir(parents=True, exist_ok=True)
    if (out / MANIFEST_FILE).exists():
        check_same(Manifest.load(out), wanted, out)
    else:
        pipeline.normalisation.save(out / NORMALISATION_FILE)
        wanted.save(out)
    if isinstance(samples.prompts, PromptTable):
        texts = open_text_cache(out, encoders.fingerprints["text"])
        texts.embed(prompts_to_embed(wanted.prompts, config), encoders.encode_prompts)
    job = LatentJob(
        out,
        wanted,
        {TRAIN: pipeline.reader(pipeline.index.train), VALIDATION: pipeline.reader(pipeline.index.validation)},
        frames_per_latent=1,
        batch_size=_BATCH_SIZE,
        num_threads=config.data.num_threads,
    )
    device = jax.devices()[0]
    ledger = PrecomputeLedger(
        job="latents",
        flops_per_run={},
        denominator=Denominator(device_kind=device.device_kind, num_devices=1, dtype="float32"),
    )
    folder = out / LEDGER_FOLDER
    folder.mkdir(exist_ok=True)
    log = PrecomputeLog(folder, ledger)
    try:
        for shard in job.run(Worker(), samples.fields):
            log.add(samples=shard.windows, runs={}, seconds=shard.seconds)
    finally:
        log.close()
