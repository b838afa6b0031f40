"""DreamZero on AgiBot: the 14B model of dreamzero_14b_droid at 30 Hz of control, 48 actions per block.

Command:   wamjax plan --config=experiments/systems/dreamzero_14b_agibot.py --topology=v5p:4x4x4 --compile
Paper:     DreamZero (arXiv 2602.15922), its released code and configurations
Sequence:  clean and noisy 9 x 22 x 40, 4 x (48 actions + 1 state) = 16,036 tokens, padded to 16,640
Mesh:      64 chips of TPU v5p: fsdp 64
"""

from ml_collections import config_dict

from experiments.systems import dreamzero_14b_droid


def get_config() -> config_dict.ConfigDict:
    config = dreamzero_14b_droid.get_config()
    # Head and two wrist cameras on a canvas of 352 x 640 with one corner black, 33 frames at 5 Hz.
    config.update({"name": "dreamzero_14b_agibot", "layout": {"actions_per_block": 48}})
    return config
