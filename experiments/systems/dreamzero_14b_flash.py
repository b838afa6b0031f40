"""DreamZero-Flash on DROID: actions become clean in one step, beside video that stays noisy.

Command:   wamjax plan --config=experiments/systems/dreamzero_14b_flash.py --topology=v5p:4x4x4 --compile
Paper:     DreamZero (arXiv 2602.15922), its released code and configurations
Sequence:  clean and noisy 9 x 22 x 40, 4 x (24 actions + 1 state) = 15,940 tokens, padded to 16,128
Mesh:      64 chips of TPU v5p: fsdp 64
Differs:   read in the released action head: the noise that is decoupled in training (video Beta, actions uniform) and
           at inference (as many steps of both, the video's levels scaled to end at 0.8). Reconstructed: that the
           published model of one step is trained further from dreamzero_14b_droid (config.finetune.base) with its
           optimizer, and that it is unguided: of one step the video's guidance never reaches the actions.
Cost:      a chunk is 114 TFLOP, 58.7 of them its step; of dreamzero_14b_droid's 8 guided steps 1,050, and of 16 1,989
"""

from ml_collections import config_dict

from experiments.systems import dreamzero_14b_droid


def get_config() -> config_dict.ConfigDict:
    config = dreamzero_14b_droid.get_config()
    config.update(
        {
            "name": "dreamzero_14b_flash",
            "layout": {"action_times": "own"},
            "objective": {"video_beta": (7.0, 1.0)},
            "sampling": {"steps": 1, "guidance": 1.0, "evaluated_steps": (), "video_final_noise": 0.8},
        }
    )
    return config
