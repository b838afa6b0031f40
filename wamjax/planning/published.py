"""Published compute figures of world-action models by their own assumptions, and the exact counts of the same runs.

The figures come from 6 N T: no attention, no encoders, no recomputation, one stream of tokens. ``render`` is the page
``docs/compute_ledger.md``; ``python -m launch.compute_ledger`` writes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from fractions import Fraction

from wamjax.config.backbone import ActionsConfig, ClipConfig
from wamjax.config.presets import WAN_2_1_I2V_14B, WAN_2_1_T2V_14B
from wamjax.config.schema import DataConfig, LayoutConfig, RunConfig
from wamjax.flops.backbone import tally_model
from wamjax.flops.model import needed_work
from wamjax.flops.stacks import find_anatomies
from wamjax.flops.video_transformer import video_transformer_flops
from wamjax.layout import build_layout

ZETTA = 10**21
_TEXT = 512  # tokens of Wan's text encoder, padding included


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """A published figure as 6 N T.

    Attributes:
      name: What is trained.
      published_zflops: As published, in words.
      parameters: N.
      tokens: T, of the whole run.
      assumptions: Where T comes from.
      source: Where the figure and its assumptions were read.
    """

    name: str
    published_zflops: str
    parameters: int
    tokens: int
    assumptions: str
    source: str

    @property
    def flops(self) -> int:
        """6 N T."""
        return 6 * self.parameters * self.tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExactRun:
    """A run counted product by product.

    Attributes:
      name: What is trained.
      forward: FLOPs of one sample's forward pass, by component.
      samples: Samples of the run; a fraction where a number of tokens is given.
      tokens_per_sample: Tokens that go through the blocks.
      parameters: N of the published figure.
      estimate: That figure, in FLOPs.
      why: Why they differ.
    """

    name: str
    forward: Mapping[str, int]
    samples: Fraction
    tokens_per_sample: int
    parameters: int
    estimate: int
    why: str

    @property
    def train(self) -> Fraction:
        """3 x forward: FLOPs of the run."""
        return 3 * sum(self.forward.values()) * self.samples

    @property
    def differences(self) -> dict[str, Fraction]:
        """What leads from the published figure to ``train``, in FLOPs: the tokens, the kernels, attention."""
        tokens = 6 * self.parameters * self.tokens_per_sample * self.samples
        scores = sum(self.forward[name] for name in ("self_scores", "cross_scores"))
        attention = 3 * scores * self.samples
        return {
            "tokens": tokens - self.estimate,
            "kernels": self.train - attention - tokens,
            "attention": attention,
        }

    @property
    def recomputed(self) -> Fraction:
        """4 x forward: everything computed a second time in the backward pass."""
        return self.train * 4 / 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class GpuHour:
    """What one hour of a chip is taken to do.

    Attributes:
      chip: Its name.
      peak_flops_per_s: Dense bf16 peak.
      utilisation: Share of the peak.
    """

    chip: str
    peak_flops_per_s: int
    utilisation: Fraction

    def hours(self, flops: Fraction | int) -> float:
        """Chip-hours of ``flops``."""
        return float(flops / (self.peak_flops_per_s * self.utilisation * 3600))


# Source: DreamZero (arXiv 2602.15922), steps and batch. The figures themselves, with 8,000 to 8,361 tokens of a sample
# and 500e9 of pretraining, circulate in compute tables of world-action models.
_DREAMZERO_SAMPLES = 100_000 * 128
DREAMZERO = Estimate(
    name="DreamZero, action tuning",
    published_zflops="~9",
    parameters=14 * 10**9,
    tokens=_DREAMZERO_SAMPLES * 8_361,
    assumptions="100,000 steps x batch 128 x 8,361 tokens",
    source="compute tables of world-action models; steps and batch of DreamZero (arXiv 2602.15922)",
)
DREAMZERO_LOW = dataclasses.replace(
    DREAMZERO,
    name="DreamZero, lower end",
    published_zflops="8.6",
    tokens=_DREAMZERO_SAMPLES * 8_000,
    assumptions="100,000 steps x batch 128 x 8,000 tokens",
)
WAN_14B = Estimate(
    name="14B video pretraining",
    published_zflops="42",
    parameters=14 * 10**9,
    tokens=500 * 10**9,
    assumptions="500e9 tokens",
    source="compute tables of world-action models",
)
SUMMER_22B = Estimate(
    name="Summer-22B, full video pretraining",
    published_zflops="~66",
    parameters=22 * 10**9,
    tokens=500 * 10**9,
    assumptions="500e9 tokens; a model of its own, not Wan",
    source="compute tables of world-action models",
)
UNIPI = Estimate(
    name="UniPi",
    published_zflops="167",
    parameters=1_700 * 10**6,
    tokens=4_000 * 2_048 * 2 * 10**6,
    assumptions="4,000 tokens x batch 2,048 x 2e6 steps",
    source="UniPi (arXiv 2302.00111)",
)
ESTIMATES = (DREAMZERO, DREAMZERO_LOW, WAN_14B, SUMMER_22B, UNIPI)

# Source: NVIDIA H100 SXM datasheet, dense bf16 (half of 1,978.9 with sparsity); 30 % as the published conversions take.
H100 = GpuHour(chip="H100", peak_flops_per_s=9_894 * 10**11, utilisation=Fraction(3, 10))


def dreamzero_config() -> RunConfig:
    """Returns DreamZero-14B on DROID: nine latent frames of 22 x 40 tokens, four blocks of 24 actions and one state.

    Source: DreamZero (arXiv 2602.15922), its released code and configurations.
    """
    return RunConfig(
        backbone=WAN_2_1_I2V_14B,
        clip=ClipConfig(num_frames=33, height=352, width=640),
        actions=ActionsConfig(modules="category"),
        layout=LayoutConfig(num_blocks=4, frames_per_block=2, actions_per_block=24),
        data=DataConfig(action_dim=32, state_dim=64),
    )


def dreamzero_forward(*, is_time_per_token: bool = True) -> dict[str, int]:
    """Returns the forward FLOPs of one sample of DreamZero-14B on DROID, by component.

    Args:
      is_time_per_token: Whether a timestep is embedded for every token, as the released model does, or once for each
        that differs, as ours does.
    """
    config = dreamzero_config()
    layout = build_layout(config)
    work = needed_work(config, layout)
    if is_time_per_token:
        work = dataclasses.replace(work, slots=layout.num_tokens)
    return tally_model([(find_anatomies(config)["shared"], work)], config.finetune).forward


def wan_14b_forward(grid: tuple[int, int, int]) -> dict[str, int]:
    """Returns the forward FLOPs of Wan 2.1 14B (text to video) on a clip of ``grid`` tokens."""
    return video_transformer_flops(WAN_2_1_T2V_14B, tokens=grid[0] * grid[1] * grid[2], text_tokens=_TEXT)


def exact_runs() -> tuple[ExactRun, ...]:
    """Returns the runs that can be counted: those whose model is public."""
    dreamzero = build_layout(dreamzero_config())
    runs = [
        ExactRun(
            name="DreamZero, action tuning",
            forward=dreamzero_forward(),
            samples=Fraction(_DREAMZERO_SAMPLES),
            tokens_per_sample=dreamzero.num_tokens,
            parameters=DREAMZERO.parameters,
            estimate=DREAMZERO.flops,
            why=f"every frame is there clean and noisy ({dreamzero.num_tokens:,} tokens, not 8,361), and attention",
        )
    ]
    for name, grid in (("480p", (21, 30, 52)), ("720p", (21, 45, 80))):
        tokens = grid[0] * grid[1] * grid[2]
        runs.append(
            ExactRun(
                name=f"14B pretraining, clips of 81 frames at {name}",
                forward=wan_14b_forward(grid),
                samples=Fraction(WAN_14B.tokens, tokens),
                tokens_per_sample=tokens,
                parameters=WAN_14B.parameters,
                estimate=WAN_14B.flops,
                why=f"attention among {tokens:,} tokens",
            )
        )
    return tuple(runs)
