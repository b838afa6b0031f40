"""The gated delta rule: linear attention whose state forgets, and corrects what it holds instead of adding to it.

One state S per head, a matrix from keys to values; token by token, with decay exp(g_t) and write strength beta_t,

    S_t = exp(g_t) S_(t-1) + beta_t k_t (v_t - (exp(g_t) S_(t-1))^T k_t)^T,    out_t = S_t^T q_t / sqrt(e)

Computed in chunks: within one, the corrections of all its tokens solve a unit lower triangular system (the WY
representation), whose inverse is made of products; the state goes from chunk to chunk by a scan. So all work is matrix
products. Time and memory grow as the number of tokens, and a backward pass computes the chunks again.

Source: Gated Delta Networks (Yang et al., arXiv 2412.06464), its gated delta rule and section on hardware-efficient
training; DeltaNet (Yang et al., arXiv 2406.06484) for the chunks.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from wamjax.layout.kernels import DELTA_CHUNK
from wamjax.nn.kernel import ATTENTION_OUT
from wamjax.types import Heads

Values = Float[Array, "b k n g"]
Gates = Float[Array, "b k n"]


def gated_delta_rule(q: Heads, k: Heads, v: Values, log_decay: Gates, strength: Gates) -> Values:
    """Reads the tokens one after the other, as the module's formula says, from an empty state.

    Products have operands in the dtype of ``v`` and are added up in fp32; decays, the inverse and the state are fp32.

    Args:
      q: ``[b k n e]`` queries.
      k: ``[b k n e]`` keys, of length 1: only then does a write replace what was there.
      v: ``[b k n g]`` values.
      log_decay: g, fp32 ``[b k n]``, 0 or less.
      strength: beta, fp32 ``[b k n]``, 0 to 1.

    Returns:
      ``[b k n g]`` in the dtype of ``v``, under the name by which rematerialisation keeps attention.

    Source: as the module. What differs from the released kernels (flash-linear-attention): the triangular inverse is
    made by halves, out of products of whole chunks.
    """
    out: jax.Array = checkpoint_name(_read(q, k, v, log_decay, strength), ATTENTION_OUT)
    return out


@jax.custom_vjp
def _read(q: jax.Array, k: jax.Array, v: jax.Array, log_decay: jax.Array, strength: jax.Array) -> jax.Array:
    return _read_chunks(q, k, v, log_decay, strength)


def _forward(*inputs: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    # One state per chunk would be more than all that a block keeps: the backward pass makes them again.
    return _read_chunks(*inputs), inputs


def _backward(inputs: tuple[jax.Array, ...], grad: jax.Array) -> tuple[jax.Array, ...]:
    return jax.vjp(_read_chunks, *inputs)[1](grad)


_read.defvjp(_forward, _backward)


def _read_chunks(q: jax.Array, k: jax.Array, v: jax.Array, log_decay: jax.Array, strength: jax.Array) -> jax.Array:
    """Returns what ``gated_delta_rule`` returns."""
    num_tokens, dtype = q.shape[2], v.dtype
    # Tokens that fill the last chunk write nothing and forget nothing.
    q, k, v, log_decay, strength = (_chunked(part) for part in (q, k, v, log_decay, strength))
    decay = jnp.cumsum(log_decay.astype(jnp.float32), axis=-1)  # since the chunk began
    strength = strength.astype(jnp.float32)[..., None]
    rows = jnp.arange(DELTA_CHUNK)
    is_past = rows[:, None] >= rows
    # Between two tokens of a chunk. Masked before the exponential, which would overflow for later keys.
    between = jnp.exp(jnp.where(is_past, decay[..., :, None] - decay[..., None, :], -jnp.inf))
    overlaps = _product("...ne,...me->...nm", k, k, dtype) * between * strength
    inverse = _inverse(jnp.where(rows[:, None] > rows, overlaps, 0.0))
    since = jnp.exp(decay)[..., None]
    writes = _product("...nm,...mg->...ng", inverse, strength * v, dtype)
    reads = _product("...nm,...me->...ne", inverse, strength * since * k, dtype)
    scores = _product("...ne,...me->...nm", q, k, dtype) * between * q.shape[-1] ** -0.5
    queries = since * q * q.shape[-1] ** -0.5
    until = jnp.exp(decay[..., -1:] - decay)[..., None]  # the chunk ends

    def step(state: jax.Array, chunk: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        writes, reads, scores, queries, keys, forgets = chunk
        new = writes - _product("...ne,...eg->...ng", reads, state, dtype)
        out = _product("...ne,...eg->...ng", queries, state, dtype)
        out = out + _product("...nm,...mg->...ng", scores, new, dtype)
        return state * forgets + _product("...ne,...ng->...eg", keys, new, dtype), out.astype(dtype)

    chunks = (writes, reads, scores, queries, until * k, since[..., -1:, :])
    operands = tuple(jnp.moveaxis(part, 2, 0) for part in chunks)
    empty = jnp.zeros((*q.shape[:2], q.shape[-1], v.shape[-1]), jnp.float32)
    out = jnp.moveaxis(jax.lax.scan(step, empty, operands)[1], 0, 2)
    return out.reshape(*out.shape[:2], -1, out.shape[-1])[:, :, :num_tokens]


def _product(spec: str, a: jax.Array, b: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Multiplies in ``dtype``, adds up in fp32."""
    return jnp.einsum(spec, a.astype(dtype), b.astype(dtype), preferred_element_type=jnp.float32)


def _chunked(x: jax.Array) -> jax.Array:
    """Returns ``[b k chunks n ...]`` of ``[b k n ...]``, zeros filling the last chunk."""
    filled = jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % DELTA_CHUNK), *((0, 0),) * (x.ndim - 3)))
    return filled.reshape(*x.shape[:2], -1, DELTA_CHUNK, *x.shape[3:])


@jax.custom_vjp
def _inverse(lower: jax.Array) -> jax.Array:
    """Returns (I + L)^-1 of strictly lower triangular L ``[... n n]``, fp32; n is a power of 2 from 2 on.

    By halves: the inverse of [[A, 0], [B, C]] is [[A^-1, 0], [-C^-1 B A^-1, C^-1]], so for blocks of twice the size it
    is T - T B T, where T has the inverses of the blocks on its diagonal and B what of L lies below them. All products
    are of whole matrices: cut into small ones they would fill few lanes of a TPU, and compile four times as long.
    Neighbouring patches have keys much alike, for which squaring L over and over (its Neumann product, as cheap) loses
    all digits: powers of L grow as binomials while the inverse stays small.
    """
    rows = jnp.arange(lower.shape[-1])
    inverse = jnp.eye(lower.shape[-1], dtype=lower.dtype)
    for level in range(lower.shape[-1].bit_length() - 1):
        block = rows >> level
        is_below = (block[:, None] == block + 1) & (block % 2 == 0)
        below = jnp.where(is_below, lower, 0.0)
        # The first blocks have one row, and T is the identity.
        inverse = inverse - (_exactly(inverse, _exactly(below, inverse)) if level else below)
    return inverse


def _invert(lower: jax.Array) -> tuple[jax.Array, jax.Array]:
    inverse = _inverse(lower)
    return inverse, inverse


def _inverse_gradient(inverse: jax.Array, grad: jax.Array) -> tuple[jax.Array]:
    # d(M^-1) = -M^-1 dM M^-1: two products. Through the levels they would be twenty, and all levels be kept.
    transposed = jnp.swapaxes(inverse, -1, -2)
    return (-jnp.tril(_exactly(transposed, _exactly(grad, transposed)), -1),)


_inverse.defvjp(_invert, _inverse_gradient)


def _exactly(a: jax.Array, b: jax.Array) -> jax.Array:
    """Multiplies in fp32, where accelerators would in fewer bits."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
