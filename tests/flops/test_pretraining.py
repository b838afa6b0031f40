from experiments.pretrain import wan_14b_480p
from wamjax.config import bridge
from wamjax.flops.model import count_flops
from wamjax.layout import build_layout


def test_pretraining_of_wan_14b_costs_what_the_published_sizes_say():
    config = bridge.from_config_dict(wan_14b_480p.get_config())
    count = count_flops(config, build_layout(config))
    assert count.forward_total == 1_678_370_283_192_320  # 21 x 30 x 52 tokens, text 512
    assert count.num_parameters == 14_288_491_584
    assert count.model_total == 3 * count.forward_total
