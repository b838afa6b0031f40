import pytest

from wamjax.planning.hlo import parse_module
from wamjax.planning.traffic import hbm_bytes

# Forty layers of [8, 128] float32 (4,096 bytes a layer): read one, update one, add two, and what lies on the chip.
MODULE = parse_module("""HloModule m, is_scheduled=true

%reads_a_layer (p: f32[40,8,128], i: s32[], y: f32[8,128]) -> f32[8,128] {
  %p = f32[40,8,128] parameter(0)
  %i = s32[] parameter(1)
  %slice = f32[1,8,128] dynamic-slice(%p, %i), dynamic_slice_sizes={1,8,128}
  %layer = f32[8,128] bitcast(%slice)
  %y = f32[8,128] parameter(2)
  ROOT %sum = f32[8,128] add(%layer, %y)
}

%writes_a_layer (q: f32[40,8,128], j: s32[], z: f32[1,8,128]) -> f32[40,8,128] {
  %q = f32[40,8,128] parameter(0)
  %j = s32[] parameter(1)
  %z = f32[1,8,128] parameter(2)
  ROOT %update = f32[40,8,128] dynamic-update-slice(%q, %z, %j)
}

%reads_all (r: f32[40,8,128]) -> f32[] {
  %r = f32[40,8,128] parameter(0)
  %part = f32[1,8,128] slice(%r), slice={[0:1]}
  ROOT %total = f32[] reduce(%r, %part)
}

%two_results (s: f32[8,128]) -> (f32[8,128], bf16[8,128]) {
  %s = f32[8,128] parameter(0)
  %half = bf16[8,128] convert(%s)
  ROOT %pair = (f32[8,128], bf16[8,128]) tuple(%s, %half)
}

ENTRY %main (a: f32[40,8,128], b: f32[8,128], k: s32[]) -> f32[] {
  %a = f32[40,8,128] parameter(0)
  %b = f32[8,128] parameter(1)
  %k = s32[] parameter(2)
  %read = f32[8,128] fusion(%a, %k, %b), kind=kLoop, calls=%reads_a_layer
  %on_chip = f32[8,128]{:S(1)} fusion(%a, %k, %b), kind=kLoop, calls=%reads_a_layer
  %bitcast = f32[1,8,128] bitcast(%read)
  %write = f32[40,8,128] fusion(%a, %k, %bitcast), kind=kLoop, calls=%writes_a_layer
  %pair.1 = (f32[8,128], bf16[8,128]) fusion(%on_chip), kind=kLoop, calls=%two_results
  %copy = f32[8,128] copy(%b)
  %sliced = f32[1,8,128] dynamic-slice(%a, %k), dynamic_slice_sizes={1,8,128}
  ROOT %all = f32[] fusion(%a), kind=kLoop, calls=%reads_all
}
""")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("read", 4096 + 4 + 4096 + 4096),  # the layer, its index, the other addend, the sum
        ("on_chip", 4096 + 4 + 4096),
        ("write", 4096 + 4 + 4096),  # the update is read and written, the stack is not
        ("pair.1", 4096 + 2048),
        ("copy", 2 * 4096),
        ("sliced", 2 * 4096),
        ("all", 40 * 4096 + 4),  # read whole besides in part: once
    ],
)
def test_bytes_of_an_instruction_equal_a_hand_count(name: str, expected: int) -> None:
    assert hbm_bytes(MODULE, MODULE.entry, MODULE.entry.by_name[name]) == expected
