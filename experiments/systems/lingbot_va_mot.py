"""LingBot-VA as its paper describes it: chunks take turns, and actions have a narrower stack that attends jointly.

Command:   wamjax plan --config=experiments/systems/lingbot_va_mot.py --topology=v5p:4x4x4 --compile
Paper:     LingBot-VA (arXiv 2601.21998)
Sequence:  noisy and clean, 32 x (12 x 10 video + 16 actions) = 8,704 tokens, padded to 8,704
Mesh:      64 chips of TPU v5p: fsdp 64
Differs:   a cost preset, as lingbot_va_robotwin. The paper gives the width of the action stream (768), its depth (the
           video's) and its size (about 350M); the feed-forward width of 4 x 768 is our reading. With the
           cross-attention to text that all blocks have here the action stream is larger than the paper's.
"""

from ml_collections import config_dict

from experiments.systems import lingbot_va_robotwin


def get_config() -> config_dict.ConfigDict:
    config = lingbot_va_robotwin.get_config()
    actions = {"modules": "expert", "expert_width": 768, "expert_ffn_width": 3072}
    # The sequence of a mixture is not split.
    config.update({"name": "lingbot_va_mot", "actions": actions, "parallel": {"context": 1}})
    return config
