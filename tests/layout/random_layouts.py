"""Layouts with a bit of everything, drawn at random: for tests that compare with dense masks."""

import random

from wamjax.layout import Layout, joint_layout


def random_layout(seed: int, multiple: int = 1) -> Layout:
    """Returns a layout of about 40 to 140 tokens, a multiple of ``multiple``."""
    draw = random.Random(seed)
    return joint_layout(
        num_blocks=draw.randint(1, 3),
        frames_per_block=draw.randint(1, 2),
        grid=(draw.randint(2, 3), draw.randint(2, 4)),
        actions_per_block=draw.randint(1, 5),
        states_per_block=1,
        order=draw.choice(["natural", "grouped"]),
        pad_multiple=multiple,
        token_causal_context=draw.random() < 0.5,
    )
