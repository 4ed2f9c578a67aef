"""Reading compiled programs: what is executed, how often, at what cost."""

import jax
import jax.numpy as jnp

from nfnets.pods.hlo import Program

# As the TPU compiler prints programs, cut to what is read.
_TEXT = """HloModule jit_step

FileNames
1 "/home/user/nfnets/models/layers.py"
2 "/home/user/train.py"

FunctionNames
1 "conv2d"
2 "main"

FileLocations
1 {file_name_id=1 function_name_id=1 line=69 end_line=69 column=4 end_column=9}
2 {file_name_id=2 function_name_id=2 line=5 end_line=5 column=0 end_column=9}

StackFrames
1 {file_location_id=2 parent_frame_id=1}
2 {file_location_id=1 parent_frame_id=1}

%fused (p.0: bf16[8,128]) -> f32[8,128] {
  %p.0 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %gather.0 = u8[50,4]{1,0} gather(%p.0, %p.0), offset_dims={}
  ROOT %convert.0 = f32[8,128]{1,0:T(8,128)} convert(%p.0)
}

%body (c.0: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %c.0 = (s32[]{:T(256)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %x.0 = f32[8,128]{1,0:T(8,128)} get-tuple-element(%c.0), index=1
  %tanh.0 = f32[8,128]{1,0:T(8,128)} tanh(%x.0), metadata={op_name="jit(f)/while/tanh"}, backend_config={"estimated_cycles":"100"}
  ROOT %t.0 = (s32[]{:T(256)}, f32[8,128]{1,0:T(8,128)}) tuple(%c.0, %tanh.0)
}

%condition (c.1: (s32[], f32[8,128])) -> pred[] {
  %c.1 = (s32[]{:T(256)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %i.1 = s32[]{:T(256)} get-tuple-element(%c.1), index=0
  %n.1 = s32[]{:T(256)} constant(36)
  ROOT %lt.1 = pred[]{:T(1024)} compare(%i.1, %n.1), direction=LT
}

%often (b.0: f32[8,128]) -> f32[8,128] {
  ROOT %b.0 = f32[8,128]{1,0:T(8,128)} negate(%b.0), backend_config={"estimated_cycles":"1000"}
}

%seldom (b.1: f32[8,128]) -> f32[8,128] {
  ROOT %b.1 = f32[8,128]{1,0:T(8,128)} sine(%b.1), backend_config={"estimated_cycles":"4000"}
}

ENTRY %main (a.0: bf16[8,128]) -> f32[8,128] {
  %a.0 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %f.0 = f32[8,128]{1,0:T(8,128)S(1)} fusion(%a.0), kind=kLoop, calls=%fused, metadata={op_name="jit(f)/conv" stack_frame_id=2}, backend_config={"estimated_cycles":"7"}
  %r.0 = (f32[8,128]{1,0:T(8,128)}, bf16[64]{0}) all-reduce-start(%f.0, %a.0), to_apply=%add
  %w.0 = (s32[]{:T(256)}, f32[8,128]{1,0:T(8,128)}) while(%f.0), condition=%condition, body=%body
  %k.0 = f32[8,128]{1,0:T(8,128)} conditional(%a.0, %f.0, %f.0), branch_computations={%often, %seldom}, metadata={op_name="jit(f)/cond"}
  ROOT %g.0 = f32[8,128]{1,0:T(8,128)} get-tuple-element(%w.0), index=1
}
"""  # noqa: E501


def _by_name(operations):
    return {operation.name: operation for operation in operations}


def test_loops_and_branches_count_as_often_as_they_run():
    found = _by_name(Program(_TEXT).operations())
    assert found["tanh.0"].repeats == 36
    assert found["tanh.0"].cycles == 3600
    assert (found["b.0"].cycles, found["b.1"].cycles) == (500, 2000)

    seen = []

    def shares(scope, count):
        seen.append((scope, count))
        return [0.9, 0.1]

    found = _by_name(Program(_TEXT).operations(shares))
    assert (found["b.0"].cycles, found["b.1"].cycles) == (900, 400)
    assert seen == [("jit(f)/cond", 2)]


def test_results_traffic_and_fusions():
    found = _by_name(Program(_TEXT).operations())
    fusion = found["f.0"]
    assert fusion.result == (("f32", (8, 128)),)
    assert (fusion.elements, fusion.num_bytes) == (1024, 4096)
    assert fusion.traffic == 2048  # the operand; the result stays on the chip
    assert [part.opcode for part in fusion.parts()] == [
        "fusion",
        "parameter",
        "gather",
        "convert",
    ]
    assert fusion.fused[1].elements == 200
    assert found["r.0"].result == (("f32", (8, 128)), ("bf16", (64,)))
    assert found["r.0"].num_bytes == 4096 + 128
    assert found["a.0"].traffic == 0


def test_source_lines_from_the_inside_out():
    program = Program(_TEXT)
    found = _by_name(program.operations())
    assert program.source(found["f.0"]) == [
        "/home/user/nfnets/models/layers.py:69 conv2d",
        "/home/user/train.py:5 main",
    ]
    assert program.source(found["r.0"]) == []


def test_a_program_of_this_backend():
    def step(x):
        x = jax.lax.fori_loop(0, 5, lambda i, x: jnp.tanh(x) @ x, x)
        return jax.lax.pmean(x, "d")

    mapped = jax.pmap(step, axis_name="d", devices=jax.devices()[:2])
    text = mapped.lower(jnp.ones((2, 64, 64))).compile().as_text()
    operations = list(Program(text).operations())
    (reduce,) = [o for o in operations if o.opcode.startswith("all-reduce")]
    assert reduce.num_bytes == 64 * 64 * 4
    products = [o for o in operations for p in o.parts() if p.opcode == "dot"]
    calls = [o for o in operations if "tanh" in o.scope]
    assert {o.repeats for o in products + calls} == {5}
