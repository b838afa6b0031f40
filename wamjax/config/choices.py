"""Choices that several parts of a configuration share."""

from __future__ import annotations

from typing import Literal

DType = Literal["float32", "bfloat16"]

# What the backward pass of a block finds; all else is computed again. See ``models.remat``.
Remat = Literal["none", "full", "attention", "products", "exchanged", "offload"]
