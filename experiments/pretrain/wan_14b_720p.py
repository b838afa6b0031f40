"""Pretraining of Wan 2.1's 14B text-to-video transformer on clips of 81 frames at 720 x 1280.

Command:   wamjax plan --config=experiments/pretrain/wan_14b_720p.py --topology=v5p:4x4x4 --compile
Paper:     Wan (arXiv 2503.20314); sizes of wan/configs/wan_t2v_14B.py
Sequence:  21 x 45 x 80 = 75,600 tokens, padded to 76,800
Mesh:      64 chips of TPU v5p: fsdp 16 x context 4
"""

from ml_collections import config_dict

from experiments.pretrain import wan_14b_480p


def get_config() -> config_dict.ConfigDict:
    config = wan_14b_480p.get_config()
    sizes = {"clip": {"height": 720, "width": 1280}, "layout": {"pad_multiple": 2560}}
    config.update({"name": "wan_14b_720p", "backbone": {"remat": "attention"}, **sizes})
    return config
