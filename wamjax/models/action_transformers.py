"""Video transformers with action modules: the parameters of published systems, one class per way actions enter.

Each holds a whole video transformer as ``video`` and what the system adds to it. They own the ways of actions and
states into tokens and back; which tokens see which is a layout's, and the joint pass over it is not here: the category
and shared forms run the video's own blocks (``VideoTransformer.run``).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from wamjax.config.systems import ActionExpertConfig, CategoryActionConfig, SharedActionConfig
from wamjax.layout import Pass
from wamjax.models.block import NUM_TABLE_VECTORS, Conditioning, stack_blocks
from wamjax.models.video_transformer import VideoTransformer
from wamjax.nn.category import CategoryActionEncoder, CategoryMlp
from wamjax.nn.conditioning import TextEmbedding, TimeEmbedding
from wamjax.nn.linear import Linear
from wamjax.nn.rotary import rotary_table
from wamjax.types import Actions, PRNGKey, States, Tokens


class CategoryActionTransformer(nnx.Module):
    """A video transformer whose blocks also read action and state tokens, encoded per embodiment.

    Source: DreamZero, groot/vla/model/dreamzero/modules/wan_video_dit_action_casual_chunk.py, ``CausalWanModel``.
    """

    def __init__(self, key: PRNGKey, config: CategoryActionConfig) -> None:
        """Makes the model of ``config``."""
        keys, self.config = jax.random.split(key, 4), config
        block, categories, hidden = config.video.block, config.num_categories, config.hidden_width
        width, dtype = block.width, block.compute_dtype
        self.video = VideoTransformer(keys[0], config.video)
        self.action_encoder = CategoryActionEncoder(keys[1], categories, config.action_dim, width, dtype=dtype)
        self.state_encoder = CategoryMlp(
            keys[2], categories, (config.state_dim, hidden, width), (None, "mlp", "embed"), dtype=dtype
        )
        self.action_decoder = CategoryMlp(
            keys[3], categories, (width, hidden, config.action_dim), ("embed", "mlp", None), dtype=dtype
        )

    def embed_actions(self, actions: Actions, ids: jax.Array, category: jax.Array) -> Tokens:
        """Returns tokens ``[b a d]`` of ``actions`` ``[b a u]``, noised at timestep ``ids`` ``[b a]``."""
        return self.action_encoder(actions, ids, category)

    def embed_states(self, states: States, category: jax.Array) -> Tokens:
        """Returns tokens ``[b s d]`` of ``states`` ``[b s p]``."""
        return self.state_encoder(states, category)

    def decode_actions(self, tokens: Tokens, category: jax.Array) -> Actions:
        """Returns the fp32 prediction ``[b a u]`` of the blocks' output ``[b a d]``, which is not normed before."""
        return self.action_decoder(tokens, category).astype(jnp.float32)


class SharedActionTransformer(nnx.Module):
    """A video transformer whose blocks also read action tokens, with timesteps embedded apart.

    ``action_text`` is a copy of the text embedding that released checkpoints hold and nothing reads.

    Source: LingBot-VA, wan_va/modules/model.py, ``WanTransformer3DModel``.
    """

    def __init__(self, key: PRNGKey, config: SharedActionConfig) -> None:
        """Makes the model of ``config``."""
        keys, self.config = jax.random.split(key, 5), config
        video = config.video
        width, dtype = video.block.width, video.block.compute_dtype
        self.video = VideoTransformer(keys[0], video)
        self.action_embed = Linear(keys[1], (config.action_dim, width), (None, "embed"), dtype=dtype)
        self.action_time = TimeEmbedding(keys[2], video.time_width, width, NUM_TABLE_VECTORS)
        self.action_text = TextEmbedding(keys[3], video.text_width, width, dtype=dtype)
        self.action_out = Linear(keys[4], (width, config.action_dim), ("embed", None), dtype=dtype)

    def embed_actions(self, actions: Actions) -> Tokens:
        """Returns tokens ``[b a d]`` of ``actions`` ``[b a u]``."""
        return self.action_embed(actions)

    def embed_action_times(self, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns what ``TimeEmbedding`` does of the actions' timestep ids ``[b slots]``."""
        return self.action_time(ids)

    def decode_actions(self, tokens: Tokens, conditioning: Conditioning) -> Actions:
        """Returns the fp32 prediction ``[b a u]`` of the blocks' output: the video's modulated norm, another head.

        Args:
          tokens: ``[b a d]``.
          conditioning: Of these tokens, with the actions' own embedding of timesteps.
        """
        return self.action_out(self.video.modulate_out(tokens, conditioning)).astype(jnp.float32)


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
            text=self.text_embedding(text),
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

    def append_state(self, text: jax.Array, state: jax.Array) -> jax.Array:
        """Returns ``text`` ``[b l text_width]`` with ``state`` ``[b p]`` as one more token, before any embedding."""
        assert self.state_embed is not None, "this model has no state token"
        return jnp.concatenate([text, self.state_embed(state)[:, None].astype(text.dtype)], axis=1)
