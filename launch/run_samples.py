"""What stood between pixels and a run's model while it was trained, found again to evaluate it.

Owns where the encoders and prompts of a run lie now, and the refusal of others than it was trained with.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from data_pipelines.latents.manifest import MANIFEST_FILE, Manifest
from data_pipelines.latents.pipeline import NO_PROMPT, open_latents
from data_pipelines.pipeline import Pipeline
from data_pipelines.sources.remote import dataset_path
from launch.clip_encoders import ClipEncoders
from launch.patch_latents import are_patches, patch_samples
from launch.window_samples import WindowSamples
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError, DataError
from wamjax.sampling.policy import PromptTable

_CHUNK_FRAMES, _DTYPE = 4, "bfloat16"  # of wamjax data cache, where a folder does not say what it had


@dataclasses.dataclass(frozen=True, kw_only=True)
class Whereabouts:
    """Where things lie now; None for where they lay when the latents were made.

    Attributes:
      latents: Folder of the run's latents.
      vae: Folder of the autoencoder.
      image_encoder: Folder of the image encoder.
    """

    latents: str | None = None
    vae: str | None = None
    image_encoder: str | None = None

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value == "":
                raise ConfigError(f"--{name} is empty; expected a folder, or leave it out")


def open_samples(
    config: RunConfig, pipeline: Pipeline, *, kept: Path, places: Whereabouts, mesh: Mesh, embodiment: int = 0
) -> WindowSamples:
    """Returns what makes samples of the windows of ``pipeline``, and what a policy of the run reads.

    Args:
      config: The run, on one dataset.
      pipeline: Of ``pixel_windows(config)``, or of windows that hold such.
      kept: Where the run keeps the manifest of its latents.
      places: See above.
      mesh: Where the encoders run.
      embodiment: ``embodiment_id`` of the robot.

    Raises:
      ConfigError: An encoder is named that is not the run's own, or none where one is needed.
      DataError: Encoders, latents or the embedding of a prompt are missing, or are others than the run's.
    """
    of_run = _load_manifest(kept, config, places)
    if are_patches(of_run):
        for name, value in dataclasses.asdict(places).items():
            if value is not None:
                raise ConfigError(
                    f"--{name}={value}: {config.name} was trained on patches, without encoders: leave it out"
                )
        samples = patch_samples(config, pipeline)
        if isinstance(samples.prompts, PromptTable):
            samples.prompts = dataclasses.replace(samples.prompts, embodiment_id=embodiment)
        return samples
    folder = places.latents or config.data.latents
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, latents=folder))
    manifest = _load_latents(folder)
    if manifest.fingerprint != of_run.fingerprint:
        raise DataError(
            f"latents {folder} have fingerprint {manifest.fingerprint[:16]}, but the run was trained on "
            f"{of_run.fingerprint[:16]} ({kept / MANIFEST_FILE}); name its own with --latents"
        )
    prompts = read_prompts(config, pipeline.prompts, embodiment)
    return WindowSamples(config, pipeline, load_encoders(config, manifest, places, mesh), prompts)


def read_prompts(config: RunConfig, prompts: tuple[str, ...], embodiment: int = 0) -> PromptTable:
    """Returns the embeddings of ``prompts`` that lie beside the latents of ``config``.

    Raises:
      ConfigError: The latents are of another run.
      DataError: There is no embedding of one of ``prompts``.
    """
    latents = open_latents(config, workdir=None)
    negative = latents.embedding(NO_PROMPT) if config.objective.prompt_dropout else None
    text = np.stack([latents.embedding(prompt) for prompt in prompts])
    return PromptTable(text=text, negative=negative, embodiment_id=embodiment)


def load_encoders(config: RunConfig, manifest: Manifest, places: Whereabouts, mesh: Mesh) -> ClipEncoders:
    """Loads the encoders that made the latents of ``manifest``.

    Raises:
      ConfigError: Another encoder is named than made them, or none is known.
      DataError: An encoder is not where it was, or its weights cannot be read.
    """
    made = manifest.made_with
    vae = _find_encoder("vae", places.vae, made)
    image = _find_encoder("image_encoder", places.image_encoder, made) if "image" in manifest.encoders else None
    if image is None and places.image_encoder is not None:
        raise ConfigError(
            f"--image_encoder={places.image_encoder}: the latents of {config.name} were made without one: leave it out"
        )
    encoders = ClipEncoders(
        config,
        mesh,
        vae=vae,
        image=image,
        dtype=made.get("dtype", _DTYPE),
        chunk_frames=made.get("chunk_frames", _CHUNK_FRAMES),
    )
    for name, folder in (("vae", vae), ("image", image)):
        wanted, found = manifest.encoders.get(name), encoders.fingerprints.get(name)
        if wanted != found:
            flag = "image_encoder" if name == "image" else name
            hint = (
                f", which ran with dtype={made.get('dtype')} and chunk_frames={made.get('chunk_frames')} "
                f"({MANIFEST_FILE})"
                if made
                else f", and run that again if it had flags: {MANIFEST_FILE} does not say how it ran"
            )
            raise ConfigError(
                f"--{flag}={folder} is not what the latents {config.data.latents} were made with: its fingerprint is "
                f"{str(found)[:16]}, theirs {str(wanted)[:16]}; name the encoder that wamjax data cache had{hint}"
            )
    return encoders


def _find_encoder(name: str, named: str | None, made: dict[str, Any]) -> Path:
    if named is not None:
        return Path(named)
    if name not in made:
        raise ConfigError(
            f"the latents' {MANIFEST_FILE} does not say where their encoder lies; name its folder with --{name}"
        )
    if not Path(made[name]).is_dir():
        raise DataError(
            f"{made[name]} is no folder (any more): the latents were made with an encoder there ({MANIFEST_FILE}); say "
            f"with --{name} where it lies now"
        )
    return Path(made[name])


def _load_manifest(kept: Path, config: RunConfig, places: Whereabouts) -> Manifest:
    """Returns the manifest that a run keeps; of a run that keeps none, that of its latents."""
    if (kept / MANIFEST_FILE).exists():
        return Manifest.load(kept)
    return _load_latents(places.latents or config.data.latents)


def _load_latents(folder: str) -> Manifest:
    try:
        return Manifest.load(dataset_path(folder))
    except DataError as error:
        raise DataError(f"{error}; if the run's latents lie elsewhere now, say where with --latents") from error
