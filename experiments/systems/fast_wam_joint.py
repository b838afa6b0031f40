"""Fast-WAM's joint mode on RoboTwin: actions read the video while it is denoised.

Command:   wamjax plan --config=experiments/systems/fast_wam_joint.py --topology=v5p:4x4x4 --compile
Paper:     Fast-WAM (arXiv 2603.16666); sizes and hyperparameters of its released code and configurations
Sequence:  first frame and 2 noisy x 12 x 10, 32 actions = 392 tokens, padded to 392
Mesh:      64 chips of TPU v5p: fsdp 64
"""

from ml_collections import config_dict

from experiments.systems import fast_wam_robotwin


def get_config() -> config_dict.ConfigDict:
    config = fast_wam_robotwin.get_config()
    config.update({"name": "fast_wam_joint", "layout": {"family": "joint"}})
    return config
