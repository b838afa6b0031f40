"""The policy of latent plans: a plan drawn from the prior of the present, and the actions decoded from it.

Nothing of the video to come is computed, and nothing is solved in steps: one pass over what is seen now, and one of the
decoder. A chunk forgets what was seen before, so there is no cache.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError
from wamjax.layout import Role, build_decoder_layout, present_segments
from wamjax.models.latent_plan import LatentPlanTransformer
from wamjax.objectives.latent_tokens import join_condition, patch_tokens
from wamjax.objectives.noising import select_frames
from wamjax.sampling.latent_policy import LatentPolicy
from wamjax.sampling.policy import LatentCodec, PromptTable
from wamjax.sampling.stages import Known, Told
from wamjax.types import PRNGKey, PureDict


class LatentPlanPolicy(LatentPolicy):
    """Draws a plan anew for every chunk, from the last frame, the state and the prompt.

    It is shown what ``LatentPolicy`` is, and reads the last frame of it.

    Source: Play-LMP (arXiv 1903.01973), where a plan is drawn once a second; here once a chunk.
    """

    def __init__(
        self, config: RunConfig, params: PureDict, *, codec: LatentCodec, prompts: PromptTable, imagine: bool = False
    ) -> None:
        """Makes a policy; arguments as ``LatentPolicy``.

        Raises:
          ConfigError: It is to imagine video: it has none.
        """
        if imagine:
            raise ConfigError(
                f"{config.name} is of config.layout.formulation=plan, which has no video to look at: it computes "
                "nothing of what follows the present"
            )
        super().__init__(config, params, codec=codec, prompts=prompts)
        self._decoding = build_decoder_layout(config).full_pass()

    def _denoise_chunk(
        self,
        params: PureDict,
        told: Told,
        first: jax.Array,
        past: Known | None,
        key: PRNGKey,
        *,
        chunk: int,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Draws a plan and decodes it; as ``LatentPolicy`` is asked to, ``first`` being what is seen now."""
        del past, chunk
        model: LatentPlanTransformer = nnx.merge(self._graphdef, params)
        present = self.layout.make_pass(present_segments(self.layout), ())
        frames = tuple(s for s in present.segments if s.role is Role.CLEAN_VIDEO)
        inferred = model.infer(
            join_condition(
                select_frames(patch_tokens(first, self._patch), frames), told.condition, frames, self._patch
            ),
            told.state,
            told.text,
            present,
            image=told.image,
            text_mask=jnp.any(told.text != 0, axis=-1) if self.config.clip.masks_text else None,
        )
        noise = jax.random.normal(key, (len(first), self.config.actions.plan_dim))
        return model.decode(inferred, inferred.plans[Role.PRIOR].at(noise), self._decoding), None
