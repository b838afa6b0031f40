"""Rules: the reverse of a rule gives back the very tensor, and names say which layer."""

import numpy as np
import pytest

from wamjax.weights.report import compare_names
from wamjax.weights.rules import TensorRule, tensors_of


@pytest.mark.parametrize(
    ("pattern", "sizes", "shape", "ours"),
    [
        ("", {}, (6, 4), (6, 4)),
        ("o i -> i o", {}, (6, 4), (4, 6)),
        ("(k e) d -> d k e", {"k": 3}, (6, 4), (4, 3, 2)),
        ("(k j two) d -> d k (two j)", {"k": 3, "two": 2}, (12, 4), (4, 3, 4)),
        ("d c t h w -> (c t h w) d", {"c": 2, "t": 1, "h": 2, "w": 2}, (5, 2, 1, 2, 2), (8, 5)),
        ("1 s d -> s d", {}, (1, 6, 4), (6, 4)),
    ],
)
def test_reverse_of_a_rule_gives_back_the_tensor(
    pattern: str, sizes: dict[str, int], shape: tuple[int, ...], ours: tuple[int, ...]
) -> None:
    rule = TensorRule(path="p", name="n", pattern=pattern, sizes=sizes)
    tensor = np.random.default_rng(0).normal(size=shape)
    array = rule.to_ours(tensor)
    assert array.shape == ours
    np.testing.assert_array_equal(rule.to_reference(array), tensor)


class _Leaf:
    def __init__(self, *shape: int) -> None:
        self.shape = shape


RULES = (
    TensorRule(path="blocks.w", name="blocks.{layer}.w", pattern="o i -> i o"),
    TensorRule(path="bias", name="bias"),
)
PARAMS = {"blocks.w": _Leaf(2, 3, 4), "bias": _Leaf(5)}
SHAPES = {"blocks.0.w": (4, 3), "blocks.1.w": (4, 3), "bias": (5,)}


def test_comparison_of_equal_names_is_exact() -> None:
    comparison = compare_names(RULES, PARAMS, SHAPES)
    assert comparison.is_exact
    assert set(comparison.matched) == set(SHAPES)


def test_comparison_names_what_is_missing_unexpected_and_misshaped() -> None:
    stored = {"blocks.0.w": (3, 4), "bias": (5,), "head": (1,), "ema.decay": ()}
    comparison = compare_names(RULES, PARAMS, stored, ignore=["ema.*"])
    assert comparison.missing == ("blocks.1.w",)
    assert comparison.unexpected == ("head",)
    assert comparison.ignored == ("ema.decay",)
    assert comparison.misshaped == (("blocks.0.w", (3, 4), ("blocks.w",), (4, 3)),)
    assert comparison.matched == {"bias": "bias"}
    assert not comparison.is_exact
    text = comparison.describe()
    assert all(
        word in text
        for word in (
            "1 missing, first blocks.1.w",
            "1 unexpected, first head",
            "blocks.0.w (3, 4); expected (4, 3) for blocks.w",
        )
    )


def test_tensor_with_another_number_of_dims_is_misshaped_and_not_an_error() -> None:
    assert compare_names(RULES, PARAMS, {**SHAPES, "blocks.1.w": (12,)}).misshaped[0][0] == "blocks.1.w"


def test_alias_fills_the_parameter_and_a_second_copy_is_told() -> None:
    rules = (*RULES, TensorRule(path="table", name="shared", aliases=("embed",)))
    params = {**PARAMS, "table": _Leaf(7)}
    alone = compare_names(rules, params, {**SHAPES, "embed": (7,)})
    assert alone.is_exact
    assert alone.matched["shared"] == "embed"
    both = compare_names(rules, params, {**SHAPES, "embed": (7,), "shared": (7,)})
    assert both.is_exact
    assert both.duplicates == (("embed", "shared"),)


FUSED = tuple(
    TensorRule(path=f"blocks.{role}", name="b.{layer}.qkv", pattern="(k e) d -> d k e", sizes={"k": 2}, part=(part, 3))
    for part, role in ((2, "value"), (0, "query"), (1, "key"))
)
FUSED_PARAMS = {rule.path: _Leaf(2, 5, 2, 3) for rule in FUSED}


def test_parts_of_a_fused_tensor_are_its_rows_and_join_to_it_whatever_the_order_of_the_rules() -> None:
    stored = np.random.default_rng(0).normal(size=(18, 5))
    query, key, value = np.split(stored, 3)
    arrays = {rule.path: rule.to_ours(stored) for rule in FUSED}
    for path, rows in (("blocks.query", query), ("blocks.key", key), ("blocks.value", value)):
        np.testing.assert_array_equal(arrays[path], rows.reshape(2, 3, 5).transpose(2, 0, 1))
        assert np.shares_memory(arrays[path], stored)
    tensor = tensors_of(FUSED, {path: leaf.shape for path, leaf in FUSED_PARAMS.items()})["b.1.qkv"]
    assert (tensor.layer, tensor.shape) == (1, (18, 5))
    np.testing.assert_array_equal(tensor.join([rule.to_reference(arrays[rule.path]) for rule in tensor.rules]), stored)


def test_fused_tensor_with_a_part_that_no_rule_has_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="qkv has gaps"):
        tensors_of(FUSED[:2], {path: leaf.shape for path, leaf in FUSED_PARAMS.items()})


def test_comparison_names_a_fused_tensor_once_with_its_whole_shape() -> None:
    assert compare_names(FUSED, FUSED_PARAMS, {"b.0.qkv": (18, 5), "b.1.qkv": (18, 5)}).matched == {
        "b.0.qkv": "b.0.qkv",
        "b.1.qkv": "b.1.qkv",
    }
    comparison = compare_names(FUSED, FUSED_PARAMS, {"b.0.qkv": (17, 5), "b.2.qkv": (18, 5)})
    assert comparison.missing == ("b.1.qkv",)
    assert comparison.unexpected == ("b.2.qkv",)
    paths = ("blocks.query", "blocks.key", "blocks.value")
    assert comparison.misshaped == (("b.0.qkv", (17, 5), paths, (18, 5)),)
    assert "1 of another shape, first b.0.qkv (17, 5); expected (18, 5) for blocks.query, blocks.key, blocks.value" in (
        comparison.describe()
    )
