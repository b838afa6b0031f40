"""A video transformer beside an action expert: a mixture of transformers (Fast-WAM, LingBot-VA's paper).

Actions go through a stack of their own, as deep as the video's and usually narrower, with its own embeddings of text
and timesteps; both attend jointly (``models.mixture``). Which tokens see which is a layout's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from wamjax.config.systems import ActionExpertConfig
from wamjax.layout import ACTION_ROLES, VIDEO_ROLES, Pass, Role
from wamjax.layout.packing import pack, unpack
from wamjax.models.action_transformers import role_runs
from wamjax.models.block import NUM_TABLE_VECTORS, Conditioning
from wamjax.models.mixture import run_mixture
from wamjax.models.prefix import make_prefix, prefixed
from wamjax.models.stack import stack_blocks
from wamjax.models.video_transformer import VideoTransformer
from wamjax.nn.conditioning import TextEmbedding, TimeEmbedding
from wamjax.nn.linear import Linear
from wamjax.nn.rotary import rotary_table
from wamjax.types import Actions, PRNGKey, Tokens


class ActionExpert(nnx.Module):
    """A stack of blocks for action tokens, narrower than the video's, with the same heads.

    Source: Fast-WAM, src/fastwam/models/wan22/action_dit.py, ``ActionDiT``: its head has neither norm nor modulation.
    """

    def __init__(self, key: PRNGKey, config: ActionExpertConfig) -> None:
        """Makes the stack of ``config``, as deep as the video's."""
        keys, self.config = jax.random.split(key, 5), config
        video, block = config.video, config.expert
        width, dtype = block.width, block.compute_dtype
        self.action_embed = Linear(keys[0], (config.action_dim, width), (None, "embed"), dtype=dtype)
        self.text_embedding = nnx.data(None)
        if block.cross_attention:
            self.text_embedding = TextEmbedding(keys[1], video.text_width, width, dtype=dtype)
        self.time_embedding = TimeEmbedding(keys[2], video.time_width, width, NUM_TABLE_VECTORS)
        self.blocks = stack_blocks(keys[3], block, video.num_layers)
        self.action_out = Linear(keys[4], (width, config.action_dim), ("embed", None), dtype=dtype)

    def embed(self, actions: Actions) -> Tokens:
        """Returns tokens ``[b a d]`` of ``actions`` ``[b a u]``."""
        return self.action_embed(actions)

    def condition(
        self,
        ids: jax.Array,
        text: jax.Array,
        layout_pass: Pass,
        runs: Sequence[tuple[int, int]],
        text_mask: jax.Array | None = None,
    ) -> Conditioning:
        """Returns what the expert's blocks read besides their tokens; arguments as ``VideoTransformer.condition``."""
        embedding, modulation = self.time_embedding(ids)
        return Conditioning(
            embedding=embedding,
            modulation=modulation,
            runs=runs,
            rotation=rotary_table(layout_pass, self.config.expert.head_dim, self.config.video.rotary.theta),
            text=text if self.text_embedding is None else self.text_embedding(text),
            text_mask=text_mask,
        )

    def decode(self, tokens: Tokens) -> Actions:
        """Returns the fp32 prediction ``[b a u]`` of the blocks' output ``[b a d]``."""
        return self.action_out(tokens).astype(jnp.float32)


class ActionExpertTransformer(nnx.Module):
    """A video transformer and an action expert that attend jointly (mixture of transformers).

    Source: Fast-WAM, src/fastwam/models/wan22/{fastwam,mot}.py.
    """

    def __init__(self, key: PRNGKey, config: ActionExpertConfig) -> None:
        """Makes the model of ``config``."""
        keys, self.config = jax.random.split(key, 3), config
        text_width, dtype = config.video.text_width, config.video.block.compute_dtype
        self.video = VideoTransformer(keys[0], config.video)
        self.expert = ActionExpert(keys[1], config)
        self.state_embed = nnx.data(None)
        if config.state_dim is not None:
            self.state_embed = Linear(keys[2], (config.state_dim, text_width), (None, None), dtype=dtype)
        self.prefix = nnx.data(make_prefix(key, config.prefix, config.video))

    def predict(
        self,
        streams: Mapping[Role, jax.Array],
        ids: jax.Array,
        category: jax.Array,
        text: jax.Array,
        layout_pass: Pass,
        *,
        image: jax.Array | None = None,
        text_mask: jax.Array | None = None,
    ) -> tuple[jax.Array, Actions]:
        """Predicts the velocities of what a layout denoises.

        Arguments and result as ``CategoryActionTransformer.predict``; there is one set of weights for all embodiments,
        so ``category`` is not read. A state ``[b 1 p]`` enters as a text token that is always seen, by cross-attention:
        a language tower has the prompt alone.
        """
        prompt = text
        if self.state_embed is not None:
            text = self.append_state(text, streams[Role.STATE][:, 0])
            if text_mask is not None:
                text_mask = jnp.pad(text_mask, ((0, 0), (0, 1)), constant_values=True)
        video, expert = (layout_pass.of_expert(name) for name in ("video", "action"))
        (video_slots,), video_runs = video.embedded_slots(VIDEO_ROLES)
        (expert_slots,), expert_runs = expert.embedded_slots(ACTION_ROLES)
        told = {
            "video": self.video.condition(
                ids[:, video_slots], text, video, runs=video_runs, image=image, text_mask=text_mask
            ),
            "action": self.expert.condition(ids[:, expert_slots], text, expert, expert_runs, text_mask),
        }
        embed = {"video": self.video.patch_embed, "action": self.expert.embed}
        roles = {"video": VIDEO_ROLES, "action": ACTION_ROLES}
        parts = {"video": video, "action": expert}
        tokens = {
            name: pack(part.segments, {r: embed[name](streams[r]) for r in roles[name] if r in streams})
            for name, part in parts.items()
        }
        blocks = {"video": self.video.blocks, "action": self.expert.blocks}
        stacks, packed, told = prefixed(
            self.prefix, prompt, layout_pass, {name: (blocks[name], tokens[name], told[name]) for name in blocks}
        )
        x = run_mixture(stacks, packed, layout_pass, told, remat=self.config.video.remat)
        own = told["video"]._replace(runs=role_runs(video.segments, video_runs, Role.NOISY_VIDEO))
        predicted = self.video.head(unpack(video.segments, x["video"], Role.NOISY_VIDEO), own)
        return predicted, self.expert.decode(unpack(expert.segments, x["action"], Role.ACTION))

    def append_state(self, text: jax.Array, state: jax.Array) -> jax.Array:
        """Returns ``text`` ``[b l text_width]`` with ``state`` ``[b p]`` as one more token, before any embedding."""
        assert self.state_embed is not None, "this model has no state token"
        return jnp.concatenate([text, self.state_embed(state)[:, None].astype(text.dtype)], axis=1)
