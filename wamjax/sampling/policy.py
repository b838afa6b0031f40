"""What every policy is: shown what happened, asked what to do, shown what happened then. Batched over rollouts."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from wamjax.errors import ConfigError
from wamjax.models.codec import PatchCodec
from wamjax.types import PRNGKey


class Chunk(NamedTuple):
    """What the policy wants to do, and what it expects to see.

    Attributes:
      actions: fp32 ``[b a u]``, normalised, to be executed in order.
      video: uint8 ``[b f H W 3]``, the frames expected while they are executed; None for a policy that does not denoise
        video to act.
      value: fp32 ``[b]``, what the policy expects that to be worth; None for one that does not say.
    """

    actions: Any
    video: Any = None
    value: Any = None


@runtime_checkable
class Policy(Protocol):
    """A world-action system that acts."""

    def reset(self, prompt_id: Any) -> None:
        """Starts new rollouts with prompts int32 ``[b]``; forgets everything observed."""
        ...

    def observe(self, frames: Any, state: Any) -> None:
        """Takes in what was really seen.

        Args:
          frames: uint8 ``[b f H W 3]`` since the last call.
          state: fp32 ``[b p]``: normalised state at the last of them.

        Raises:
          ConfigError: Called before ``reset``, or with another number of frames than the policy expects.
        """
        ...

    def act(self, key: PRNGKey) -> Chunk:
        """Draws the next chunk.

        Raises:
          ConfigError: Nothing was observed at all or, of a policy in latents, since the last chunk.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptTable:
    """Encoded prompts of a backbone's policy, by ``prompt_id``.

    Attributes:
      text: ``[prompts l text_width]``, zero beyond a prompt's length.
      negative: ``[l text_width]``: what guidance leads away from; None for zeros, which is no
        encoder's encoding of an empty prompt.
      embodiment_id: Which embodiment the policy drives.
    """

    text: npt.NDArray[Any]
    negative: npt.NDArray[Any] | None = None
    embodiment_id: int = 0

    def look_up(self, prompt_id: npt.NDArray[Any], *, guided: bool) -> tuple[jax.Array, jax.Array]:
        """Returns text ``[b l d]`` and embodiments ``[b]``; with ``guided`` the unconditional half after it.

        Raises:
          ConfigError: A prompt is not in the table.
        """
        rows = check_prompts(prompt_id, len(self.text))
        text = np.asarray(self.text)[rows]
        if guided:
            nothing = np.zeros_like(text[:1]) if self.negative is None else np.asarray(self.negative)[None]
            text = np.concatenate([text, np.broadcast_to(nothing, text.shape)])
        return jnp.asarray(text), jnp.full(len(text), self.embodiment_id, jnp.int32)


@runtime_checkable
class LatentCodec(Protocol):
    """The frozen encoders between pixels and what a backbone reads."""

    def encode(self, video: Any) -> jax.Array:
        """Returns normalised latents ``[b t h w c]`` of uint8 frames ``[b f H W 3]``, the first a latent of its own."""
        ...

    def decode(self, latents: jax.Array) -> jax.Array:
        """Returns uint8 frames ``[b f H W 3]`` of latents ``[b t h w c]``."""
        ...

    def condition(self, first_frame: Any, num_latents: int) -> tuple[jax.Array | None, jax.Array | None]:
        """Returns condition channels ``[b t h w c]`` of a clip from its first frame, and image tokens ``[b m d]``.

        Args:
          first_frame: uint8 ``[b 1 H W 3]``.
          num_latents: Latent frames of the clip.
        """
        ...


@runtime_checkable
class StreamingCodec(LatentCodec, Protocol):
    """A codec that goes on with a clip from what it kept, so that no frame is encoded twice."""

    def encode_next(self, frames: Any, memory: Any) -> tuple[jax.Array, Any]:
        """Encodes the next frames of a clip.

        Args:
          frames: uint8 ``[b f H W 3]``; the first of a clip is a latent of its own.
          memory: What the call before returned; None begins a clip.

        Returns:
          The latents ``[b t h w c]`` of these frames, those that ``encode`` gives them, and what the next call needs.
        """
        ...


@runtime_checkable
class PictureEncoder(Protocol):
    """The frozen image encoder whose tokens a GPT policy reads."""

    def encode_pictures(self, pictures: Any) -> Any:
        """Returns ``[b v n+1 c]`` of pictures uint8 ``[b v H W 3]``: a token of the whole, then one per patch."""
        ...


@runtime_checkable
class PromptWriter(Protocol):
    """Prompts with the robot's state written in them, as a vision-language-action model reads them.

    Attributes:
      num_prompts: How many ``prompt_id`` there are.
    """

    num_prompts: int

    def __call__(self, prompt_id: Any, state: Any) -> Any:
        """Returns token ids int32 ``[b l]``, -1 for padding, of prompts ``[b]`` and normalised states ``[b p]``."""
        ...


def check_prompts(prompt_id: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    """Returns the prompts ``[b]`` of new rollouts.

    Raises:
      ConfigError: One is not among ``count``.
    """
    rows = np.asarray(prompt_id)
    if rows.size and not 0 <= rows.min() <= rows.max() < count:
        raise ConfigError(
            f"prompt_id {rows.min()}..{rows.max()} in Policy.reset; this policy has {count} prompts, counted from 0"
        )
    return rows


def check_pictures(frames: npt.NDArray[Any], views: int, rollouts: int | None) -> None:
    """Refuses what a policy that sees one picture of every camera was shown.

    Args:
      frames: ``[b v H W 3]``.
      views: Cameras.
      rollouts: That ``Policy.reset`` began; None where it was not called.

    Raises:
      ConfigError: The policy was not reset, or the pictures are of other cameras or rollouts.
    """
    if rollouts is None:
        raise ConfigError("Policy.observe was called before Policy.reset: the policy has no prompt")
    if len(frames) != rollouts:
        raise ConfigError(f"Policy.observe got pictures of {len(frames)} rollouts; Policy.reset began {rollouts}")
    if frames.shape[1] != views:
        raise ConfigError(f"Policy.observe got {frames.shape[1]} pictures; expected one of each of {views} views")


@dataclasses.dataclass(frozen=True)
class PatchLatents:
    """Pixels as latents by the patch codec, for backbones that are trained on such: exact, and nothing to load."""

    codec: PatchCodec

    def encode(self, video: Any) -> jax.Array:
        """As ``LatentCodec.encode``; every frame is a latent frame."""
        return self.codec.encode(jnp.asarray(video))

    def decode(self, latents: jax.Array) -> jax.Array:
        """As ``LatentCodec.decode``."""
        return self.codec.decode(latents)

    def condition(self, first_frame: Any, num_latents: int) -> tuple[None, None]:
        """Returns nothing: there are no encoders of a first frame."""
        del first_frame, num_latents
        return None, None
