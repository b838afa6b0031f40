import importlib.util

import pytest

from wamjax.errors import ConfigError
from wamjax.planning.chips import BY_PREFIX
from wamjax.planning.slices import parse_topology, topology_names
from wamjax.planning.topology import open_topology


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("v4:2x2x4", (2, 2, 4)), ("v5e:4x4", (4, 4)), ("v5p:8x8x8", (8, 8, 8)), ("v5p:16x16x16", (16, 16, 16)),
     ("v6e:16x16", (16, 16)), ("tpu7x:4x4x4", (4, 4, 4))],
)  # fmt: skip
def test_slice_that_is_offered_is_read(name: str, sizes: tuple[int, ...]) -> None:
    generation, parsed = parse_topology(name)
    assert (generation.prefix, parsed) == (name.split(":")[0], sizes)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("v5p:4x4x5", "v5p:4x4x4"), ("v5p:8x4x4", "v5p:4x4x8"), ("v6:16x16", "v6e:16x16"), ("v5p-64", "v5p:"),
     ("v5e:32x32", "v5e:16x16"), ("v5p:4", "v5p:2x2x1"), ("", "2x2")],
)  # fmt: skip
def test_unknown_slice_is_refused_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"--topology={name} is no TPU slice; nearest are .*{nearest}") as caught:
        parse_topology(name)
    assert "\n" not in str(caught.value)


def test_no_slice_is_larger_than_the_vendor_connects() -> None:
    for generation in BY_PREFIX.values():
        names = topology_names(generation)
        assert len(set(names)) == len(names)
        for name in names:
            chips = 1
            for size in parse_topology(name)[1]:
                chips *= size
            assert chips <= generation.chip.domain_chips


def test_missing_libtpu_is_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "libtpu" else real(name, *rest)
    )
    with pytest.raises(ConfigError, match=r"libtpu is not installed; pip install 'wamjax\[tpu-compile\]'") as caught:
        open_topology("v5p:4x4x4")
    assert "\n" not in str(caught.value)
