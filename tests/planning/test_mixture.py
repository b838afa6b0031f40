"""Plans of a mixture of transformers: every expert's tokens at its own width."""

from tests.flops.steps import vary
from tests.flops.test_systems import FIRST_FRAME
from wamjax.config.schema import RunConfig
from wamjax.layout import build_layout
from wamjax.planning.activations import Activations, plan_activations
from wamjax.planning.machine import machine_of_chips
from wamjax.planning.shards import make_shard

CONFIG = vary(FIRST_FRAME, train={"global_batch_size": 1})


def activations(config: RunConfig) -> Activations:
    layout = build_layout(config)
    return plan_activations(make_shard(config, layout, machine_of_chips("h100:1")), layout.full_pass().schedule)


def test_arrays_of_both_experts_are_kept_each_at_its_width() -> None:
    video, actions, layers, size = 4 * 6, 5, 3, 2
    kept = activations(vary(CONFIG, backbone={"remat": "products"})).by_array
    assert kept["block input"] == layers * size * (video * 24 + actions * 8)
    assert kept["query"] == layers * size * (video + actions) * 24
    assert kept["feed-forward product"] == layers * size * (video * 40 + actions * 34)
    assert kept["text keys and values"] == layers * size * 2 * 2 * (11 + 1) * 24  # of both, a state among them


def test_one_stack_keeps_more_than_a_mixture_of_the_same_tokens() -> None:
    shared = vary(CONFIG, actions={"modules": "linear"}, layout={"states_per_block": 0})
    names = ("block input", "cross projection")
    one, two = (activations(vary(c, backbone={"remat": "products"})).by_array for c in (shared, CONFIG))
    assert all(one[name] > two[name] for name in names)
