"""The Wan video autoencoders: ``WanVae`` from convolutions, blocks and levels."""

from wamjax.models.wan_vae.autoencoder import Moments, WanVae

__all__ = ["Moments", "WanVae"]
