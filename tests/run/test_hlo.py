"""Reading HLO: what a program executes, how often, and how many bytes and FLOPs that is."""

from __future__ import annotations

from collections import Counter

import jax
import jax.numpy as jnp
import pytest

from emerald_jax.run.hlo import Program, array_bytes

#: A loop of five steps around a fusion and a copy; a branch; a library call; a collective.
PROGRAM = """HloModule jit_f, is_scheduled=true

FileNames
1 "/home/user/emerald_jax/models/layers.py"
2 "/usr/lib/jax/random.py"

FunctionNames
1 "Dense.__call__"
2 "uniform"

FileLocations
1 {file_name_id=1 function_name_id=1 line=71 end_line=71 column=11 end_column=60}
2 {file_name_id=2 function_name_id=2 line=9 end_line=9 column=11 end_column=60}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}


%fused (one: f32[5,8,4], two: s32[], three: f32[8,4]) -> f32[8,4] {
  %one = f32[5,8,4]{2,1,0} parameter(0)
  %two = s32[] parameter(1)
  %zero = s32[] constant(0)
  %row = f32[1,8,4]{2,1,0} dynamic-slice(%one, %two, %zero, %zero), dynamic_slice_sizes={1,8,4}
  %flat = f32[8,4]{1,0} bitcast(%row)
  %three = f32[8,4]{1,0} parameter(2)
  ROOT %sum = f32[8,4]{1,0} add(%flat, %three)
}

%body (state: (s32[], f32[8,4], /*index=2*/f32[5,8,4])) -> (s32[], f32[8,4], f32[5,8,4]) {
  %state = (s32[], f32[8,4]{1,0}, /*index=2*/f32[5,8,4]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[8,4]{1,0} get-tuple-element(%state), index=1
  %rows = f32[5,8,4]{2,1,0} get-tuple-element(%state), index=2
  %copy.1 = f32[8,4]{1,0} copy(%x)
  %next = f32[8,4]{1,0} fusion(%rows, %i, /*index=2*/%copy.1), calls=%fused, metadata={FRAME=2}
  ROOT %out = (s32[], f32[8,4]{1,0}, f32[5,8,4]{2,1,0}) tuple(%i, %next, %rows)
}

%condition (state.1: (s32[], f32[8,4], f32[5,8,4])) -> pred[] {
  %state.1 = (s32[], f32[8,4]{1,0}, f32[5,8,4]{2,1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %end = s32[] constant(5)
  ROOT %go = pred[] compare(%i.1, %end), direction=LT
}

%yes (a: f32[8,4]) -> f32[8,4] {
  %a = f32[8,4]{1,0} parameter(0)
  %twice = f32[8,4]{1,0} add(%a, %a)
  ROOT %root = f32[8,4]{1,0} sqrt(%twice)
}

%no (b: f32[8,4]) -> f32[8,4] {
  ROOT %b = f32[8,4]{1,0} parameter(0)
}

ENTRY %main (x.1: f32[8,4], rows.1: f32[5,8,4]) -> f32[8,4] {
  %x.1 = f32[8,4]{1,0} parameter(0)
  %rows.1 = f32[5,8,4]{2,1,0} parameter(1)
  %start = s32[] constant(0)
  %init = (s32[], f32[8,4]{1,0}, f32[5,8,4]{2,1,0}) tuple(%start, %x.1, %rows.1)
  %loop = (s32[], f32[8,4], f32[5,8,4]) while(%init), condition=%condition, body=%body LOOP
  %y = f32[8,4]{1,0} get-tuple-element(%loop), index=1
  %product = (f32[8,4]{1,0}, s8[64]{0}) custom-call(%y, %y), backend_config={"text":"a (b"}
  %p = f32[8,4]{1,0} get-tuple-element(%product), index=0
  %both-start = (f32[8,4], f32[8,4]) all-reduce-start(%p), to_apply=%no, metadata={FRAME=1}
  %both = f32[8,4]{1,0} all-reduce-done(%both-start)
  ROOT %end.1 = f32[8,4]{1,0} conditional(%start, %both, %both), branch_computations={%yes, %no}
}
""".replace("FRAME", "stack_frame_id")
KNOWN = ', backend_config={"known_trip_count":{"n":"5"}}'


@pytest.mark.parametrize("known", [KNOWN, ""], ids=["known", "from the condition"])
def test_operations_are_counted_as_often_as_loops_run_them(known):
    program = Program(PROGRAM.replace(" LOOP", known))
    counts = Counter()
    for operation, times in program.executed():
        counts[operation.opcode] += times
    # The longer of the two branches; a condition is not executed where the count is known.
    once = {"custom-call": 1, "all-reduce-start": 1, "add": 1, "sqrt": 1}
    assert counts == {"fusion": 5, "copy": 5, **once}


def test_a_loop_of_unknown_length_counts_once():
    program = Program(PROGRAM.replace(" LOOP", "").replace("constant(5)", "parameter(1)"))
    counts = Counter()
    for operation, times in program.executed():
        counts[operation.opcode] += times
    assert counts["fusion"] == counts["compare"] == 1


def test_traffic_counts_what_is_read_and_written():
    program = Program(PROGRAM.replace(" LOOP", KNOWN))
    traffic = {one.name: program.traffic(one) for one, _ in program.executed()}
    array = 8 * 4 * 4
    # One row of five, the counter and the copy are read, one array is written.
    assert traffic["next"] == array + 4 + array + array
    assert traffic["copy.1"] == 2 * array
    assert traffic["product"] == 3 * array
    assert traffic["both-start"] == 2 * array


def test_collectives_count_the_bytes_of_their_operands():
    program = Program(PROGRAM.replace(" LOOP", KNOWN))
    found = {one.name: size for one, _ in program.executed() if (size := program.collective(one))}
    assert found == {"both-start": 8 * 4 * 4}


def test_collectives_of_arrays_on_the_chip_count():
    text = PROGRAM.replace(" LOOP", KNOWN).replace("%p = f32[8,4]{1,0}", "%p = f32[8,4]{1,0:S(1)}")
    program = Program(text)
    assert [program.collective(one) for one, _ in program.executed()].count(8 * 4 * 4) == 1


def test_an_operation_has_the_innermost_line_of_this_package():
    program = Program(PROGRAM.replace(" LOOP", KNOWN))
    sources = {one.name: program.source(one) for one, _ in program.executed()}
    assert sources["both-start"] == sources["next"] == "models/layers.py:71 Dense.__call__"
    assert sources["copy.1"] == "made by the compiler"


def test_an_update_in_place_costs_what_is_new():
    text = """
%fused (old: f32[9,4], new: f32[1,4], at: s32[]) -> f32[9,4] {
  %old = f32[9,4]{1,0} parameter(0)
  %new = f32[1,4]{1,0} parameter(1)
  %at = s32[] parameter(2)
  ROOT %end = f32[9,4]{1,0} dynamic-update-slice(%old, %new, %at, %at)
}

ENTRY %main {
  %x = f32[9,4]{1,0} parameter(0)
  %row = f32[1,4]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %a = f32[9,4]{1,0} fusion(%x, %row, %i), kind=kLoop, calls=%fused
  ROOT %b = f32[9,4]{1,0} dynamic-update-slice(%a, %row, %i, %i)
}
"""
    program = Program(text)
    traffic = {one.name: program.traffic(one) for one, _ in program.executed()}
    assert traffic == {"a": 16 + 16 + 4, "b": 2 * 16}


def test_a_fusion_reads_only_what_its_results_need():
    """Three vectors are added, and a quarter of the sum is kept; a reduction needs everything."""
    text = """
%fused (a: f32[1024], b: f32[1024], c: f32[1024]) -> (f32[256], f32[]) {
  %a = f32[1024]{0} parameter(0)
  %b = f32[1024]{0} parameter(1)
  %c = f32[1024]{0} parameter(2)
  %ab = f32[1024]{0} add(%a, %b)
  %abc = f32[1024]{0} add(%ab, %c)
  %few = f32[256]{0} slice(%abc), slice={[0:256]}
  %zero = f32[] constant(0)
  %all = f32[] reduce(%c, %zero), dimensions={0}, to_apply=%sum
  ROOT %both = (f32[256]{0}, f32[]) tuple(%few, %all)
}

ENTRY %main {
  %x = f32[1024]{0} parameter(0)
  ROOT %y = (f32[256]{0}, f32[]) fusion(%x, %x, %x), kind=kLoop, calls=%fused
}
"""
    program = Program(text)
    ((operation, _),) = program.executed()
    assert program.traffic(operation) == (2 * 256 + 1024 + 256 + 1) * 4


def test_arrays_on_the_chip_cost_no_traffic():
    assert array_bytes("(bf16[8,128]{1,0:T(8,128)(2,1)}, f32[8,128]{1,0:T(8,128)S(1)})") == 2048
    assert array_bytes("f32[8,128]{1,0:T(8,128)S(1)}", on_chip=True) == 4096
    assert array_bytes("(f32[2]{0}, pred[3]{0}, u32[])", first=True) == 8
    assert array_bytes("pred[3]") == 3
    assert array_bytes("f8e4m3fn[4]{0}") == 4
    assert array_bytes("token[]") == 0


def test_flops_of_products_and_convolutions_by_hand():
    def function(x, w, image, kernel):
        def body(x, _):
            return x @ w, None

        x, _ = jax.lax.scan(body, x, None, length=3)
        numbers = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=numbers)
        return x, y

    shapes = ((5, 4), (4, 4), (2, 8, 8, 3), (3, 3, 3, 7))
    lowered = jax.jit(function).lower(*(jnp.zeros(shape) for shape in shapes))
    program = Program(lowered.as_text(dialect="hlo"))
    work = sum(times * program.flops(one) for one, times in program.executed())
    assert work == 3 * 2 * 5 * 4 * 4 + 2 * (2 * 8 * 8 * 7) * (3 * 3 * 3)


def test_a_compiled_program_is_read():
    def body(x, _):
        return jnp.sin(x @ x), None

    compiled = jax.jit(lambda x: jax.lax.scan(body, x, None, length=11)[0]).lower(jnp.eye(6))
    program = Program(compiled.compile().as_text())
    counts = Counter()
    for operation, times in program.executed():
        counts[operation.opcode] += times
    assert counts["dot"] == 11
    assert sum(times * program.flops(one) for one, times in program.executed()) == 11 * 2 * 6**3


def test_another_text_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        Program("module @jit_f {\n}\n")
