"""Fast-WAM on LIBERO: actions read the first frame alone, so that no video is denoised to act.

Command:   wamjax plan --config=experiments/systems/fast_wam_libero.py --topology=v5p:4x4x4 --compile
Paper:     Fast-WAM (arXiv 2603.16666); sizes and hyperparameters of its released code and configurations
Sequence:  first frame and 2 noisy x 7 x 14, 32 actions = 326 tokens, padded to 326
Mesh:      64 chips of TPU v5p: fsdp 64
Differs:   the paper's steps and batch are RoboTwin's; those of LIBERO are assumed equal.
"""

from ml_collections import config_dict

from experiments.systems import fast_wam_robotwin


def get_config() -> config_dict.ConfigDict:
    config = fast_wam_robotwin.get_config()
    # Two views side by side: 3 latent frames of 14 x 28 latents.
    sizes = {"clip": {"height": 224, "width": 448}, "data": {"action_dim": 7, "state_dim": 8}}
    config.update({"name": "fast_wam_libero", **sizes})
    return config
