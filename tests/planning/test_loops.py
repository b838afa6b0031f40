import pytest

from wamjax.planning.hlo import parse_module
from wamjax.planning.loops import trip_count, visit_computations


def loop(*, start: str = "constant(0)", bound: str = "constant(6)", step: str = "constant(1)", direction: str = "LT"):
    """A loop over (counter, bound, data), the condition inside a fusion as XLA likes to have it."""
    return parse_module(f"""HloModule loop, is_scheduled=true

%compare (p.0: s32[], p.1: s32[]) -> pred[] {{
  %p.0 = s32[] parameter(0)
  %p.1 = s32[] parameter(1)
  ROOT %lt = pred[] compare(%p.0, %p.1), direction={direction}
}}

%condition (state: (s32[], s32[], f32[8])) -> pred[] {{
  %state = (s32[], s32[], f32[8]) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %n = s32[] get-tuple-element(%state), index=1
  ROOT %go = pred[] fusion(%i, %n), kind=kLoop, calls=%compare
}}

%body (state.1: (s32[], s32[], f32[8])) -> (s32[], s32[], f32[8]) {{
  %state.1 = (s32[], s32[], f32[8]) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %copied = s32[] copy(%i.1)
  %n.1 = s32[] get-tuple-element(%state.1), index=1
  %data = f32[8] get-tuple-element(%state.1), index=2
  %step = s32[] {step}
  %next = s32[] add(%copied, %step)
  ROOT %out = (s32[], s32[], f32[8]) tuple(%next, %n.1, %data)
}}

ENTRY %main (x: f32[8], y: s32[]) -> (s32[], s32[], f32[8]) {{
  %x = f32[8] parameter(0)
  %y = s32[] parameter(1)
  %start = s32[] {start}
  %bound = s32[] {bound}
  %init = (s32[], s32[], f32[8]) tuple(%start, %bound, %x)
  ROOT %loop = (s32[], s32[], f32[8]) while(%init), condition=%condition, body=%body
}}
""")


@pytest.mark.parametrize(
    ("start", "bound", "step", "direction", "expected"),
    [
        ("constant(0)", "constant(6)", "constant(1)", "LT", 6),
        ("constant(2)", "constant(11)", "constant(3)", "LT", 3),
        ("constant(2)", "constant(11)", "constant(3)", "LE", 4),
        ("constant(5)", "constant(0)", "constant(-1)", "GE", 6),
        ("constant(6)", "constant(6)", "constant(1)", "LT", 0),
        ("constant(0)", "constant(6)", "constant(4)", "NE", None),  # 4, 8, ... never 6
        ("constant(0)", "copy(%y)", "constant(1)", "LT", None),  # a bound that comes with the arguments
    ],
)
def test_trip_count_equals_running_the_counter(
    start: str, bound: str, step: str, direction: str, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wamjax.planning.loops.MAX_TRIPS", 100)
    module = loop(start=start, bound=bound, step=step, direction=direction)
    assert trip_count(module, module.entry, module.entry.by_name["loop"]) == expected


def test_trip_count_noted_by_xla_is_believed() -> None:
    text = """HloModule m

%c (p: (s32[])) -> pred[] {
  %p = (s32[]) parameter(0)
  ROOT %t = pred[] constant(true)
}

ENTRY %main (x: s32[]) -> (s32[]) {
  %x = s32[] parameter(0)
  %init = (s32[]) tuple(%x)
  ROOT %w = (s32[]) while(%init), condition=%c, body=%c, backend_config={"known_trip_count":{"n":"40"}}
}
"""
    module = parse_module(text)
    assert trip_count(module, module.entry, module.entry.by_name["w"]) == 40


def test_nested_loops_multiply_and_branches_are_visited() -> None:
    text = """HloModule m

%c (p: (s32[])) -> pred[] {
  %p = (s32[]) parameter(0)
  ROOT %t = pred[] constant(true)
}

%inner (p.1: (s32[])) -> (s32[]) {
  ROOT %p.1 = (s32[]) parameter(0)
}

%taken (p.2: (s32[])) -> (s32[]) {
  ROOT %p.2 = (s32[]) parameter(0)
}

%outer (p.3: (s32[])) -> (s32[]) {
  %p.3 = (s32[]) parameter(0)
  ROOT %w.1 = (s32[]) while(%p.3), condition=%c, body=%inner, backend_config={"known_trip_count":{"n":"5"}}
}

ENTRY %main (x: (s32[]), i: s32[]) -> (s32[]) {
  %x = (s32[]) parameter(0)
  %i = s32[] parameter(1)
  %w = (s32[]) while(%x), condition=%c, body=%outer, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %b = (s32[]) conditional(%i, %w, %w), branch_computations={%taken, %inner}
}
"""
    visits, unknown = visit_computations(parse_module(text))
    assert [(v.computation.name, v.times, v.depth, v.ways) for v in visits] == [
        ("main", 1, 0, 1),
        ("outer", 3, 1, 1),
        ("inner", 15, 2, 1),
        ("taken", 1, 0, 2),
        ("inner", 1, 0, 2),
    ]
    assert unknown == []
