"""The inverse-dynamics network: two consecutive frames in, the actions executed between them out.

Convolutions over the rows and columns of both frames' channels, the mean over all pixels, and two dense layers. Small
beside any video model, so its parameters are held whole by every device and the batch alone is split.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from wamjax.config.inverse_dynamics import InverseDynamicsConfig
from wamjax.models.wan_vae.convolution import FrameConv
from wamjax.nn.linear import Linear
from wamjax.parallel.rules import constrain
from wamjax.types import PRNGKey

FRAMES, CHANNELS = 2, 3  # of a pair; of a frame


class InverseDynamicsModel(nnx.Module):
    """a = W_2 relu(W_1 mean(x_L)), x_0 = relu(conv(pair)), x_(i+1) = x_i + relu(conv_i(x_i)).

    Source: UniPi (arXiv 2302.00111): a 3 x 3 convolution, three more with residual connections, mean pooling over all
    pixels, dense layers of 128 and of the controls. Unverified: where the rectifiers are, and that two frames enter as
    channels of one picture.
    """

    def __init__(self, key: PRNGKey, config: InverseDynamicsConfig, num_values: int) -> None:
        """Makes the network; ``num_values`` are those of all actions between two frames."""
        keys = jax.random.split(key, config.num_layers + 3)
        self.config, width, dtype = config, config.width, config.compute_dtype
        self.first = FrameConv(keys[0], (FRAMES * CHANNELS, width), stride=config.stride, dtype=dtype)
        for place, own in enumerate(keys[1:-2]):
            setattr(self, f"residual_{place}", FrameConv(own, (width, width), dtype=dtype))
        self.hidden = Linear(keys[-2], (width, config.hidden_width), (None, None), dtype=dtype)
        self.out = Linear(keys[-1], (config.hidden_width, num_values), (None, None), dtype=dtype)

    def __call__(self, video: jax.Array) -> jax.Array:
        """Predicts what was executed between every two consecutive frames.

        Args:
          video: uint8 ``[b f H W 3]``; levels 0..255 are read as [-1, 1].

        Returns:
          fp32 ``[b f-1 (k u)]``, the k actions of each pair one after the other.
        """
        frames = constrain(video.astype(jnp.float32) / 127.5 - 1.0, "batch", None, None, None, None)
        x = jax.nn.relu(self.first(jnp.concatenate([frames[:, :-1], frames[:, 1:]], axis=-1)))
        for place in range(self.config.num_layers):
            x = x + jax.nn.relu(getattr(self, f"residual_{place}")(x))
        pooled = jnp.mean(x.astype(jnp.float32), axis=(2, 3))
        return self.out(jax.nn.relu(self.hidden(pooled))).astype(jnp.float32)
