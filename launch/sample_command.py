"""Generates a clip with a pretrained video backbone, from a prompt or from a prompt and a first frame.

  wamjax sample --weights=Wan2.1-T2V-1.3B-Diffusers --prompt="a robot arm stacks two cubes" --out=clip.mp4
  wamjax sample --weights=Wan2.2-TI2V-5B-Diffusers --prompt="..." --image=first.png --out=clip.mp4

--weights is a folder as diffusers publishes pipelines: transformer (for A14B transformer_2 too), vae, text_encoder,
tokenizer, and for models with an image branch image_encoder. Each part may be a reference checkpoint or what
`wamjax weights import` made of it. Nothing is downloaded.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging
from flax import nnx
from jax.sharding import Mesh
from PIL import Image, UnidentifiedImageError

from data_pipelines.image_preprocessing import preprocess_images
from data_pipelines.sources.remote import refuse_address
from data_pipelines.text.tokenizer import PromptTokenizer
from launch import distributed
from launch.film import write_video
from launch.pipeline_folder import Part, PipelineFolder
from wamjax.config.schema import ParallelConfig
from wamjax.errors import ConfigError, DataError
from wamjax.models.umt5 import pad_prompts
from wamjax.nn.modulation import TIMESTEP_IDS
from wamjax.parallel.mesh import build_mesh
from wamjax.sampling.generate import ClipShape, Condition, condition_on_frame, generate_latents
from wamjax.sampling.solvers import Schedule, SolverConfig, build_schedule

_DEFAULT_SHIFT = 5.0
_DEFAULT_BOUNDARY = 0.875  # of Wan 2.2 T2V-A14B, where model_index.json does not say boundary_ratio
_DECODE_CHUNK = 1  # latent frames decoded at a time
_SIGMAS = {
    "euler": {"diffusers": "diffusers_euler", "uniform": "uniform"},
    "unipc": {"diffusers": "diffusers_unipc", "wan": "wan"},
}


def define_flags() -> None:
    """Defines the flags of ``wamjax sample``."""
    flags.DEFINE_string("weights", None, "Folder of the parts (see above).", required=True)
    flags.DEFINE_string("prompt", None, "What the clip shows.", required=True)
    flags.DEFINE_string("negative_prompt", "", "What guidance leads away from.")
    flags.DEFINE_string("image", None, "First frame, of the clip's size; for models that take one.")
    flags.DEFINE_string("lora", None, "Adapter file whose low-rank updates are added to the transformer.")
    flags.DEFINE_string("lora_low", None, "The adapter file of the low-noise expert (A14B).")
    flags.DEFINE_string("out", None, "The mp4 to write.", required=True)
    flags.DEFINE_integer("frames", 81, "Frames, 4 n + 1.")
    flags.DEFINE_integer("height", 480, "Height in pixels.")
    flags.DEFINE_integer("width", 832, "Width in pixels.")
    flags.DEFINE_integer("fps", 16, "Frames shown per second.", lower_bound=1)
    flags.DEFINE_integer("steps", 50, "Model evaluations (twice as many with guidance).")
    flags.DEFINE_float("guidance", 5.0, "Classifier-free guidance scale; 1 for none.")
    flags.DEFINE_float("guidance_low", None, "The scale of the low-noise expert (A14B); as --guidance by default.")
    flags.DEFINE_float("shift", None, "Timestep shift; by default the scheduler's flow_shift, or 5.")
    flags.DEFINE_enum("solver", "unipc", sorted(_SIGMAS), "How steps are taken.")
    flags.DEFINE_enum("sigmas", "diffusers", ["diffusers", "wan", "uniform"], "Whose noise levels.")
    flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "Dtype of parameters and matrix products.")
    flags.DEFINE_integer("seed", 0, "Seed of the noise.")
    distributed.define_device_flags()


def run(argv: list[str]) -> int:
    """Generates one clip."""
    if argv:
        raise ConfigError(f"unexpected argument {argv[0]!r}; wamjax sample takes flags only (see wamjax sample --help)")
    values, started = flags.FLAGS, time.perf_counter()
    refuse_address(values.out, "--out")
    folder, out = PipelineFolder(Path(values.weights)), Path(values.out)
    schedule = build_schedule(_solver(folder))
    if not folder.path.is_dir():
        raise DataError(f"--weights={folder.path} is not a folder; expected the parts of a pipeline")
    if not out.parent.is_dir():
        raise ConfigError(f"--out={out}: there is no folder {out.parent}")
    picture = None if values.image is None else _read_image(Path(values.image))
    distributed.start_devices(values.cpu_devices)
    mesh = build_mesh(ParallelConfig(data=1, fsdp=-1, context=1, tensor=1))
    texts = _encode_prompts(folder, mesh, [values.prompt, values.negative_prompt], values.dtype)
    vae = folder.load("vae", mesh, "float32")  # it decides how sharp a clip can be, and is small
    transformer = folder.load("transformer", mesh, values.dtype, lora=_path_or_none(values.lora))
    shape = ClipShape(frames=values.frames, height=values.height, width=values.width)
    latent_shape = shape.latent_shape(vae.config, transformer.config.patch)
    condition = None if picture is None else _condition(folder, mesh, vae, transformer, shape, picture)
    if picture is None and transformer.config.in_channels > transformer.config.out_channels:
        raise ConfigError("this model generates from a first frame; say which with --image")
    latents = _generate(folder, mesh, transformer, schedule, texts, (1, *latent_shape), condition)
    video = vae.apply(lambda model, z: model.decode(model.denormalise(z), chunk=_DECODE_CHUNK), latents)
    frames = np.asarray(jnp.round((video[0] + 1.0) * 127.5)).astype(np.uint8)
    write_video(out, frames, fps=values.fps)
    seconds = time.perf_counter() - started
    print(
        f"{out}: {shape.frames} frames of {shape.width} x {shape.height}, {schedule.num_steps} steps, {seconds:.1f} s"
    )
    return 0


def _solver(folder: PipelineFolder) -> SolverConfig:
    """Returns the solver that the flags describe."""
    values = flags.FLAGS
    conventions = _SIGMAS[values.solver]
    if values.sigmas not in conventions:
        raise ConfigError(
            f"--sigmas={values.sigmas} with --solver={values.solver}; expected one of {sorted(conventions)}"
        )
    shift = values.shift if values.shift is not None else folder.scheduler.get("flow_shift", _DEFAULT_SHIFT)
    return SolverConfig(
        num_steps=values.steps, method=values.solver, sigmas=conventions[values.sigmas], shift=float(shift)
    )


def _encode_prompts(folder: PipelineFolder, mesh: Mesh, prompts: list[str], dtype: str) -> jax.Array:
    """Returns the encoded prompts ``[2 l d]``. The encoder leaves memory when this returns."""
    tokenizer = PromptTokenizer(folder.path / "tokenizer")
    tokens = tokenizer(prompts)
    for row in tokens.truncated:
        logging.warning(
            "the prompt %r has more than %d tokens; its end is left out", prompts[row][:40], tokenizer.max_tokens
        )
    encoder = folder.load("text_encoder", mesh, dtype)

    def encode(model: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
        return pad_prompts(model(ids, mask), mask)

    return encoder.apply(encode, jnp.asarray(tokens.input_ids), jnp.asarray(tokens.attention_mask))


def _condition(
    folder: PipelineFolder, mesh: Mesh, vae: Part, transformer: Part, shape: ClipShape, picture: Image.Image
) -> Condition:
    """Returns the first frame as this model takes it."""
    tokens = None
    if transformer.config.image_width is not None:
        encoder = folder.load("image_encoder", mesh, flags.FLAGS.dtype)
        pixels = jnp.asarray(preprocess_images([picture], encoder.config.image_size))
        tokens = encoder.apply(lambda model, images: model(images).penultimate, pixels)
    frame = jnp.asarray(np.asarray(picture, np.float32) / 127.5 - 1.0)[None]
    return condition_on_frame(_bound(vae), transformer.config, shape, frame, tokens)


def _generate(
    folder: PipelineFolder,
    mesh: Mesh,
    transformer: Part,
    schedule: Schedule,
    texts: jax.Array,
    shape: tuple[int, ...],
    condition: Condition | None,
) -> jax.Array:
    """Returns sampled latents; with two experts each denoises its share of the noise levels."""
    values = flags.FLAGS
    noise = jax.random.normal(jax.random.key(values.seed), shape)
    parts = [transformer]
    boundary = 0.0
    if folder.has("transformer_2"):
        boundary = float(folder.index.get("boundary_ratio", _DEFAULT_BOUNDARY)) * TIMESTEP_IDS
        parts.append(folder.load("transformer_2", mesh, values.dtype, lora=_path_or_none(values.lora_low)))
    guidance_low = values.guidance if values.guidance_low is None else values.guidance_low

    def guidance(time: jax.Array) -> jax.Array:
        return jnp.where(time >= boundary, values.guidance, guidance_low)

    @jax.jit
    def sample(params: list[Any], noise: jax.Array, texts: jax.Array, condition: Condition | None) -> jax.Array:
        models = [nnx.merge(part.graphdef, own) for part, own in zip(parts, params, strict=True)]

        def backbone(latents: jax.Array, ids: jax.Array, text: jax.Array, *, image: jax.Array | None) -> jax.Array:
            if len(models) == 1:
                return models[0](latents, ids, text, image=image)
            high, low = models
            return jax.lax.cond(
                jnp.max(ids) >= boundary,
                lambda: high(latents, ids, text, image=image),
                lambda: low(latents, ids, text, image=image),
            )

        return generate_latents(backbone, schedule, noise, texts[:1], texts[1:], guidance=guidance, condition=condition)

    return sample([part.params for part in parts], noise, texts, condition)


def _path_or_none(value: str | None) -> Path | None:
    return Path(value) if value else None


def _bound(part: Part) -> Any:
    return nnx.merge(part.graphdef, part.params)


def _read_image(path: Path) -> Image.Image:
    try:
        return Image.open(path).convert("RGB")
    except FileNotFoundError:
        raise DataError(f"--image={path} does not exist") from None
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"--image={path} cannot be read as a picture: {error}") from error
