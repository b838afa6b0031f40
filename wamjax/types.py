"""The one axis legend of the project, and the array aliases built on it.

Every jaxtyping string, einops pattern and shape in a docstring uses these letters and no others:

====  ==========================================================================
``b`` batch
``f`` pixel frames
``t`` latent frames
``H W`` canvas height and width in pixels
``h w`` latent grid: rows and columns of video tokens
``n`` tokens of the packed sequence
``m`` tokens a query may look at (keys), when they differ from ``n``
``l`` text tokens
``c`` channels of one video token before embedding
``d`` model width
``k`` attention heads
``e`` head dimension
``g`` head dimension of values, where it is not that of queries and keys
``i`` temporal blocks (DreamZero's "chunks")
``a`` action steps
``u`` action dimensions
``s`` state steps
``p`` state (proprioception) dimensions
``v`` camera views
====  ==========================================================================

Upper-case letters are sizes of the lower-case axes in prose and formulas. An *axis* is an axis of the device
mesh; a *dim* is a dimension of an array.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import jax
from jaxtyping import Array, Bool, Float, UInt8

# Nested dictionary of arrays keyed by module path: what jit sees of a model (no NNX objects inside).
PureDict: TypeAlias = dict[str, Any]
PRNGKey: TypeAlias = jax.Array

VideoPixels: TypeAlias = UInt8[Array, "b f H W 3"]
VideoTokens: TypeAlias = Float[Array, "b t h w c"]
Actions: TypeAlias = Float[Array, "b a u"]
States: TypeAlias = Float[Array, "b s p"]
Tokens: TypeAlias = Float[Array, "b n d"]
TextTokens: TypeAlias = Float[Array, "b l d"]
Heads: TypeAlias = Float[Array, "b k n e"]
KeyHeads: TypeAlias = Float[Array, "b k m e"]
Mask2D: TypeAlias = Bool[Array, "n m"]
