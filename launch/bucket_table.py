"""The buckets of a run as a table, shown before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping

from wamjax.config.schema import RunConfig
from wamjax.flops.model import FlopCount


def describe_buckets(
    config: RunConfig, costs: Mapping[str, tuple[FlopCount, int]], shares: Mapping[str, float] | None = None
) -> str:
    """Returns one line for each bucket: its shape, tokens, batch, FLOPs of a step and share of the samples.

    Args:
      config: The run.
      costs: FLOPs and tokens of a sample, and samples of a batch, by bucket; without those that are not trained on.
      shares: Share of the samples by bucket; None where the data was not looked at.
    """
    header = f"{'bucket':16} {'frames':>7} {'canvas':>11} {'tokens':>9} {'batch':>6} {'tokens/step':>12} "
    lines = [header + f"{'model FLOPs/step':>20} {'hardware FLOPs/step':>20} {'samples':>8}"]
    for bucket in config.data.buckets.sets:
        size = f"{bucket.canvas[0]}x{bucket.canvas[1]}"
        if bucket.name not in costs:
            lines.append(f"{bucket.name:16} {bucket.num_frames:7} {size:>11}   no window fits it: not trained on")
            continue
        count, batch = costs[bucket.name]
        share = "" if shares is None else f"{shares[bucket.name]:.2%}"
        lines.append(
            f"{bucket.name:16} {bucket.num_frames:7} {size:>11} {count.num_tokens:9,} {batch:6,} "
            f"{batch * count.num_tokens:12,} {batch * count.model_total:20,} {batch * count.hardware_total:20,} "
            f"{share:>8}"
        )
    return "\n".join(lines)
