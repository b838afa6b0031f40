import pytest

from wamjax.planning.hlo import HOST, Array, HloError, parse_arrays, parse_module

MODULE = """HloModule jit_step, is_scheduled=true

%fused (p.0: bf16[8,128]) -> bf16[8,128] {
  %p.0 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %double = bf16[8,128]{1,0:T(8,128)(2,1)} add(%p.0, %p.0)
}

%other_core (p.1: f32[]) -> f32[] {
  ROOT %p.1 = f32[] parameter(0)
}, execution_thread="sparsecore"

ENTRY %main (x: bf16[8,128], y: s32[]) -> (bf16[8,128], f32[2,2]) {
  %x = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0), metadata={op_name="x"}
  %y = s32[]{:T(128)} parameter(1)
  %kernel = f32[2,2] custom-call(%x, /*index=1*/%y), custom_call_target="tpu_custom_call", frontend_attributes={a={
"xprof_metadata":"{\\"block_q\\": 1024, \\"b\\": 2}"
}}, metadata={op_name="jit(step)/f/pallas_call"}, backend_config={"custom_call_config":{"body":"A(=,{","flops":"12"}}
  %copy-start = (bf16[8,128]{1,0:T(8,128)S(5)}, bf16[8,128]{1,0}, u32[]{:S(2)}) copy-start(%x)
  %fusion = bf16[8,128]{:S(1)} fusion(%x), calls=%fused, backend_config={"window_config":{"estimated_cycles":"77"}}
  ROOT %tuple = (bf16[8,128]{1,0}, f32[2,2]{1,0}) tuple(%fusion, %kernel)
}
"""


def test_module_holds_computations_in_order_and_the_entry() -> None:
    module = parse_module(MODULE)
    assert list(module.computations) == ["fused", "other_core", "main"]
    assert module.entry.name == "main"
    names = [instruction.name for instruction in module.entry.instructions]
    assert names == ["x", "y", "kernel", "copy-start", "fusion", "tuple"]
    assert module.entry.root.name == "tuple"
    assert [user.name for user in module.entry.users["x"]] == ["kernel", "copy-start", "fusion"]


def test_instruction_printed_over_several_lines_is_one() -> None:
    kernel = parse_module(MODULE).entry.by_name["kernel"]
    assert kernel.operands == ("x", "y")
    assert kernel.target == "tpu_custom_call"
    assert kernel.op_name == "jit(step)/f/pallas_call"
    assert kernel.backend_config["custom_call_config"] == {"body": "A(=,{", "flops": "12"}


def test_memory_space_and_cycles_are_read() -> None:
    entry = parse_module(MODULE).entry
    assert entry.by_name["fusion"].arrays == (Array("bf16", (8, 128), 1),)
    assert entry.by_name["fusion"].estimated_cycles == 77
    assert entry.by_name["x"].estimated_cycles == 0
    assert [array.memory_space for array in entry.by_name["copy-start"].arrays] == [HOST, 0, 2]


def test_called_computation_and_its_nested_instructions_are_found() -> None:
    module = parse_module(MODULE)
    assert [inner.opcode for inner in module.nested(module.entry.by_name["fusion"])] == ["parameter", "add"]
    assert module.called(module.entry.by_name["x"]) is None


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("f32[]", 4), ("bf16[3,5]", 30), ("s4[3]", 2), ("pred[7]", 7), ("f8e4m3fn[2,8]", 16), ("f32[0]{0}", 0)],
)
def test_array_bytes_are_those_of_its_elements(text: str, num_bytes: int) -> None:
    (array,) = parse_arrays(text)
    assert array.num_bytes == num_bytes


def test_nested_tuple_is_flattened() -> None:
    arrays = parse_arrays("((bf16[2,2]{1,0}, s32[]), /*index=1*/f32[4]{0:T(8)S(1)})")
    assert [str(array) for array in arrays] == ["bf16[2,2]", "s32[]", "f32[4]"]


@pytest.mark.parametrize(("text", "message"), [("HloModule x\n", "no ENTRY"), ("f99[2]", "unknown element type")])
def test_what_is_not_hlo_is_refused(text: str, message: str) -> None:
    with pytest.raises(HloError, match=message):
        parse_module(text) if text.startswith("Hlo") else parse_arrays(text)
