"""Compiled programs read back: by hand for each rule, and two real ones.

The one for TPUs needs the extra `tpu`:
`bash launch/test.sh --tpu tests/plan/test_program.py`.
"""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from goku_jax.plan import program

ADD = """
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}
"""
LESS = """
%{name} (carry: (s32[], f32[8])) -> pred[] {{
  %carry = (s32[], f32[8]{{0}}) parameter(0)
  %limit = s32[]{{:T(128)}} constant({limit})
  %i = s32[]{{:T(128)}} get-tuple-element(%carry), index=0
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}}
"""


def entry(*lines):
  """A program of one computation, on 16 devices."""
  body = "\n".join(f"  {line}" for line in lines)
  return (
    "HloModule jit_f, is_scheduled=true, num_partitions=16\n\n"
    f"ENTRY %main (x: f32[8]) -> f32[8] {{\n{body}\n}}\n"
  )


def only(text):
  (found,) = program.collectives(text)
  return found


def loop(start, *, condition="once", more=""):
  """An entry whose loop sums over devices."""
  body = """
%body (carry: (s32[], f32[8])) -> (s32[], f32[8]) {
  %carry = (s32[], f32[8]{0}) parameter(0)
  %sum = f32[8]{0} all-reduce(%carry), replica_groups={}, to_apply=%add
  ROOT %out = (s32[], f32[8]{0}) tuple(%carry, %sum)
}
"""
  main = entry(
    "%x = f32[8]{0} parameter(0)",
    f"%start = s32[] constant({start})",
    "%copy = s32[]{:T(128)} copy(%start)",
    "%init = (s32[], f32[8]{0}) tuple(%copy, %x)",
    f"%w = (s32[], /*index=1*/f32[8]{{0}}) while(%init), condition=%{condition}"
    f", body=%body{more}",
  )
  return ADD + LESS.format(name="once", limit=6) + body + main


def test_a_loop_inside_a_loop_multiplies():
  inner = """
%inner (c: (s32[], f32[8])) -> (s32[], f32[8]) {
  %c = (s32[], f32[8]{0}) parameter(0)
  %moved = f32[8]{0} collective-permute(%c), source_target_pairs={{0,1},{1,0}}
  ROOT %out = (s32[], f32[8]{0}) tuple(%c, %moved)
}
%outer (d: (s32[], f32[8])) -> (s32[], f32[8]) {
  %d = (s32[], f32[8]{0}) parameter(0)
  %wide = f32[16]{0} all-gather(%d), replica_groups={{0,1}}, dimensions={0}
  ROOT %w = (s32[], f32[8]{0}) while(%d), condition=%c4, body=%inner
}
"""
  main = entry(
    "%x = (s32[], f32[8]{0}) parameter(0)",
    "%w = (s32[], f32[8]{0}) while(%x), condition=%c5, body=%outer",
    "ROOT %sum = f32[] all-reduce(%x), replica_groups={}, to_apply=%add",
  )
  conditions = [LESS.format(name=f"c{n}", limit=n) for n in (4, 5)]
  found = program.collectives(ADD + "".join(conditions) + inner + main)
  assert [(c.kind, c.times, c.loops) for c in found] == [
    ("all-gather", 5, 1),
    ("collective-permute", 20, 2),
    ("all-reduce", 1, 0),
  ]


def test_a_loop_runs_from_its_start_to_its_limit():
  assert only(loop(0)).times == 6
  assert only(loop(1)).times == 5  # one run was peeled off
  known = ', backend_config={"known_trip_count":{"n":"3"}}'
  assert only(loop(0, more=known)).times == 3


def test_a_loop_that_does_not_say_counts_once():
  forever = """
%forever (carry: (s32[], f32[8])) -> pred[] {
  %carry = (s32[], f32[8]{0}) parameter(0)
  ROOT %go = pred[] custom-call(%carry), custom_call_target="go"
}
"""
  found = only(forever + loop(0, condition="forever"))
  assert (found.times, found.loops) == (1, 1)


@pytest.mark.parametrize(
  ("line", "kind", "shape"),
  [
    (
      "%s = (f32[2]{0}, f32[8]{0}) all-gather-start(%x), dimensions={0}",
      "all-gather",
      (8,),
    ),
    (
      "%s = (bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, bf16[4,3]{1,0:T(8,128)(2,1)},"
      " u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x)",
      "collective-permute",
      (4, 3),
    ),
    ("%s = f32[8]{0} all-reduce-start(%x)", "all-reduce", (8,)),
    (
      "%s = ((f32[8]{0}, token[]), f32[2]{0}, u32[]) reduce-scatter-start(%x)",
      "reduce-scatter",
      (2,),
    ),
  ],
)
def test_two_halves_are_one_exchange_of_what_arrives(line, kind, shape):
  half = line.split("(%x)")[0].rsplit(" ", 1)[1].removesuffix("-start")
  done = f"ROOT %d = f32[8]{{0}} {half}-done(%s)"
  found = only(entry("%x = f32[2]{0} parameter(0)", line, done))
  assert (found.kind, found.shape) == (kind, shape)


@pytest.mark.parametrize(
  ("start", "done", "word"),
  [
    ("async-start", "async-done", "calls"),
    ("call-start", "call-done", "to_apply"),  # on the sparse core of a TPU
  ],
)
def test_an_exchange_on_a_thread_of_its_own_counts_once(start, done, word):
  inside = """
%called (p: f32[2]) -> f32[8] {
  %p = f32[2]{0} parameter(0)
  ROOT %wide = f32[8]{0} all-gather(%p), replica_groups=[4,4]<=[16]
}, execution_thread="sparsecore"
"""
  main = entry(
    "%x = f32[2]{0} parameter(0)",
    f"%s = ((f32[2]{{0}}), f32[8]{{0}}) {start}(%x), {word}=%called",
    f"ROOT %d = f32[8]{{0}} {done}(%s), {word}=%called",
  )
  assert only(inside + main)[:5] == ("all-gather", 32, 1, 0, 4)


@pytest.mark.parametrize(
  ("words", "group"),
  [
    ("replica_groups={{0,4,8},{1,5,9}}", 3),
    ("replica_groups=[2,8]<=[16]", 8),
    ("replica_groups=[8,2]<=[2,8]T(1,0)", 2),
    ("replica_groups=[16]<=[16]", 16),
    ("replica_groups={}", 16),
    ("replica_groups=mesh['a'=2,'b'=4,'c'=2] {'b'}", 4),
    ("replica_groups=mesh['a'=2,'b'=4,'c'=2] {'a','c'}", 4),
    ("replica_groups=mesh['a'=2,'b'=8] {'b':(2)4}", 4),
    ("source_target_pairs={{0,1},{1,2},{2,0},{3,4},{4,3}}", 3),
    ("source_target_pairs={{0,1},{1,2},{2,3}}", 4),
  ],
)
def test_how_many_devices_exchange(words, group):
  line = f"%y = f32[8]{{0}} all-gather(%x), channel_id=1, {words}"
  assert only(entry(line + ", use_global_device_ids=true")).group == group


def test_a_sum_fused_with_its_split_is_a_reduce_scatter():
  inside = """
%all-reduce-scatter.2 (g: bf16[16,8], h: bf16[8,16]) -> (bf16[2,8], bf16[8,2]) {
  %g = bf16[16,8]{1,0} parameter(0)
  %h = bf16[8,16]{1,0} parameter(1)
  %all-reduce.9 = (bf16[16,8]{1,0}, bf16[8,16]{1,0}) all-reduce(%g, %h), \
replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %left = bf16[16,8]{1,0} get-tuple-element(%all-reduce.9), index=0
  %part = bf16[2,8]{1,0} dynamic-slice(%left, %left), dynamic_slice_sizes={2,8}
  ROOT %t = (bf16[2,8]{1,0}, bf16[8,2]{1,0}) tuple(%part, %part)
}
"""
  main = entry(
    "%x = bf16[16,8]{1,0} parameter(0)",
    "%f = (bf16[2,8]{1,0}, bf16[8,2]{1,0}) fusion(%x, %x), kind=kCustom,"
    ' calls=%all-reduce-scatter.2, metadata={op_name="jit(f)/grad/mlp"}',
  )
  found = program.collectives(ADD + inside + main)
  assert [c.shape for c in found] == [(2, 8), (8, 2)]
  assert {c[:5] for c in found} == {("reduce-scatter", 32, 1, 0, 8)}
  assert {c.source for c in found} == {"jit(f)/grad/mlp"}


def test_an_exchange_spread_over_fusions_counts_once():
  piece = """
%{name} (p: bf16[2,8]) -> bf16[16,8] {{
  %p = bf16[2,8]{{1,0}} parameter(0)
  ROOT %ag = bf16[16,8]{{1,0}} all-gather(%p), channel_id=6, replica_groups={{\
{{0,1}}}}, frontend_attributes={{chain_id="{chain}"}}
}}
"""
  names = {"begin": 0, "middle": 0, "end": 0, "other": 1}
  pieces = [piece.format(name=n, chain=names[n]) for n in names]
  calls = [
    f"%{n}.1 = bf16[16,8]{{1,0}} fusion(%x), kind=kCustom, calls=%{n}"
    for n in names
  ]
  text = "".join(pieces) + entry("%x = bf16[2,8] parameter(0)", *calls)
  assert len(program.collectives(text)) == 2


def test_pieces_of_an_all_to_all_are_one_and_sums_together_are_several():
  pieces = ", ".join(["f32[2,3]{1,0}"] * 4)
  found = only(entry(f"%y = ({pieces}) all-to-all(%a, %b, %c, %d)"))
  assert (found.shape, found.bytes) == ((4, 2, 3), 96)
  both = entry("%y = (f32[2]{0}, bf16[4]{0}) all-reduce(%a, %b), to_apply=%add")
  found = program.collectives(ADD + both)
  assert [(c.dtype, c.bytes) for c in found] == [("f32", 8), ("bf16", 8)]


def test_calls_and_every_branch_are_followed():
  inside = """
%one (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %a = f32[8]{0} all-reduce(%p), replica_groups={}, to_apply=%add
}
%two (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %a = f32[8]{0} call(%p), to_apply=%one
}
"""
  main = entry(
    "%x = f32[8]{0} parameter(0)",
    "%y = f32[8]{0} conditional(%i, %x, %x), branch_computations={%one, %two}",
    "%z = f32[8]{0} conditional(%i, %x, %x), true_computation=%one,"
    " false_computation=%two",
    "ROOT %r = f32[] reduce(%x, %i), dimensions={0}, to_apply=%one",
  )
  assert len(program.collectives(ADD + inside + main)) == 4


@pytest.mark.parametrize(
  ("word", "kind"),
  [("ALL_REDUCE", "all-reduce"), ("ONE_TO_ONE", "collective-permute")],
)
def test_slices_exchange_by_what_they_receive(word, kind):
  target = (
    ', is_host_transfer=true, frontend_attributes={_xla_megascale_target="'
    f'{{1:3,7}}x{{0:7}}",_xla_megascale_transfer_type="{word}"}}'
  )
  made = "(bf16[4,8]{1,0}, u32[], token[])"
  text = entry(
    "%x = bf16[4,8]{1,0} parameter(0)",
    f"%s = {made} send(%x, %t), channel_id=2{target}",
    f"%r = {made} recv(%t), channel_id=1{target}",
    "%d = (bf16[4,8]{1,0}, token[]) recv-done(%r), channel_id=1",
    "ROOT %y = bf16[4,8]{1,0} get-tuple-element(%d), index=0,"
    ' metadata={op_name="jit(f)/mlp/up"}',
  )
  found = only(text)
  assert found[:5] == (kind, 64, 1, 0, 4)
  assert found.crosses_slices
  assert found.source == "jit(f)/mlp/up"  # by the nearest that has a name


def test_a_kernel_is_known_by_its_name_and_its_loops():
  body = """
%body (c: (s32[], f32[8])) -> (s32[], f32[8]) {
  %c = (s32[], f32[8]{0}) parameter(0)
  %splash_fwd.2.clone.1 = f32[8]{0} custom-call(%c), \
custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{}"
}}, metadata={op_name="jit(f)/splash_fwd/pallas_call" stack_frame_id=1}
  %buffer = f32[8]{0} custom-call(), custom_call_target="AllocateBuffer"
  ROOT %out = (s32[], f32[8]{0}) tuple(%c, %splash_fwd.2.clone.1)
}
"""
  main = entry(
    "%x = (s32[], f32[8]{0}) parameter(0)",
    "ROOT %w = (s32[], f32[8]{0}) while(%x), condition=%c3, body=%body",
  )
  found = program.kernels(LESS.format(name="c3", limit=3) + body + main)
  source = "jit(f)/splash_fwd/pallas_call"
  assert found == [program.Kernel("splash_fwd", 3, 1, source)]


def test_arrays_are_what_instructions_leave_in_memory():
  body = """
%wide (p: bf16[8]) -> (f32[64], bf16[3,8], bf16[8]) {
  %p = bf16[8]{0} parameter(0)
  %hidden = f32[8,64]{1,0} broadcast(%p), dimensions={0}
  %up = f32[64]{0} convert(%hidden)
  %seen = f32[64]{0} bitcast(%up)
  %kept = bf16[3,8]{1,0} dynamic-update-slice(%p, %p, %p)
  ROOT %t = (f32[64]{0}, bf16[3,8]{1,0}, bf16[8]{0}) tuple(%seen, %kept, %p)
}
%body (c: (s32[], bf16[8])) -> (s32[], bf16[8]) {
  %c = (s32[], bf16[8]{0}) parameter(0)
  %x = bf16[8]{0} get-tuple-element(%c), index=1
  %f = (f32[64]{0}, bf16[3,8]{1,0}, bf16[8]{0}) fusion(%x), kind=kLoop, \
output_to_operand_aliasing={{2}: (0, {})}, calls=%wide, \
metadata={op_name="jit(f)/block"}
  %s = (bf16[8]{0}, bf16[8]{0:S(1)}, u32[]) copy-start(%x)
  %d = bf16[8]{0:S(1)} copy-done(%s)
  ROOT %out = (s32[], bf16[8]{0}) tuple(%c, %d)
}
"""
  main = entry(
    "%x = (s32[], bf16[8]{0}) parameter(0)",
    "%outside = f32[99]{0} broadcast(%x), dimensions={}",
    "ROOT %w = (s32[], bf16[8]{0}) while(%x), condition=%c3, body=%body",
  )
  found = program.shapes(LESS.format(name="c3", limit=3) + body + main)
  assert found == [
    program.Array("f32", (99,), "broadcast", "", 1, 0),
    program.Array("f32", (64,), "convert", "jit(f)/block", 3, 1),
    program.Array("bf16", (3, 8), "dynamic-update-slice", "jit(f)/block", 3, 1),
    program.Array("bf16", (8,), "copy-done", "", 3, 1),
  ]


def test_bytes_follow_the_dtype():
  sizes = {"pred": 6, "s4": 3, "f8e4m3fn": 6, "bf16": 12, "f32": 24, "c64": 48}
  assert {d: program.num_bytes(d, (2, 3)) for d in sizes} == sizes
  assert program.num_bytes("f32", ()) == 4


def test_what_is_no_program_is_refused():
  with pytest.raises(ValueError, match="no ENTRY"):
    program.collectives("HloModule jit_f\n")


DEPTH, WIDTH, WIDE, ROWS, TOKENS = 3, 256, 1024, 16, 128


def compile_layers(devices, mix=None):
  """A step of MLPs, scanned, weights and rows over all devices of one axis."""
  mesh = Mesh(np.array(devices), ("fsdp",))
  placed = lambda *spec: NamedSharding(mesh, P(*spec))
  rows = placed("fsdp")

  def block(x, weights):
    x = x if mix is None else mix(x, mesh)
    hidden = jax.nn.gelu(x @ weights["up"].astype(x.dtype))
    x = x + hidden @ weights["down"].astype(x.dtype)
    return jax.lax.with_sharding_constraint(x, rows), None

  def loss(weights, x):
    y, _ = jax.lax.scan(jax.checkpoint(block), x, weights)
    return jnp.mean(jnp.square(y.astype(jnp.float32)))

  def step(weights, x):
    grads = jax.grad(loss)(weights, x)
    return jax.tree.map(lambda w, g: w - 0.1 * g, weights, grads)

  shapes = {"up": (DEPTH, WIDTH, WIDE), "down": (DEPTH, WIDE, WIDTH)}
  weights = {
    name: jax.ShapeDtypeStruct(
      shape, jnp.float32, sharding=placed(None, "fsdp")
    )
    for name, shape in shapes.items()
  }
  x = jax.ShapeDtypeStruct((ROWS, TOKENS, WIDTH), jnp.bfloat16, sharding=rows)
  places = jax.tree.map(lambda w: w.sharding, weights)
  fn, weights = (step, weights) if mix is None else (loss, weights)
  options = dict(donate_argnums=0, out_shardings=places) if mix is None else {}
  return jax.jit(fn, **options).lower(weights, x).compile()


def table(text):
  """How many exchanges in loops there are of each sort."""
  return collections.Counter(
    (c.kind, c.dtype, tuple(n for n in c.shape if n > 1), c.times, c.group)
    for c in program.collectives(text)
    if c.loops
  )


def check_memory(compiled):
  memory = program.memory(compiled)
  weights = 2 * DEPTH * WIDTH * WIDE * 4 // 8  # float32, over 8 devices
  assert memory.aliased == weights  # all of it is donated
  assert memory.arguments == weights + ROWS * TOKENS * WIDTH * 2 // 8
  assert memory.live >= memory.arguments + memory.temporary
  assert memory.host == 0


def test_a_program_for_eight_pretend_devices_gathers_each_layer():
  compiled = compile_layers(jax.devices())
  text = compiled.as_text()
  up, down = (WIDTH, WIDE), (WIDE, WIDTH)  # this compiler sums, then splits
  kinds = {"all-gather": 2, "all-reduce": 1}  # forward and again; gradients
  assert table(text) == {
    (kind, "f32", shape, DEPTH, 8): count
    for kind, count in kinds.items()
    for shape in (up, down)
  }
  found = program.collectives(text)
  assert {c.loops for c in found} == {1}
  assert all("while/body" in c.source for c in found)
  assert program.kernels(text) == []
  check_memory(compiled)


def v5e():
  return topologies.get_topology_desc("v5e:2x4", "tpu").devices


@pytest.mark.tpu
def test_a_program_for_a_tpu_gathers_and_scatters_each_layer():
  compiled = compile_layers(v5e())
  text = compiled.as_text()
  up, down = (WIDTH, WIDE), (WIDE, WIDTH)
  gathers = {("all-gather", "bf16", s, DEPTH, 8): 2 for s in (up, down)}
  scatters = {
    ("reduce-scatter", "bf16", (rows // 8, columns), DEPTH, 8): 1
    for rows, columns in (up, down)
  }
  assert table(text) == gathers | scatters
  check_memory(compiled)
  # No float32 copy of the tokens, and what the MLP holds is seen.
  large = [
    a
    for a in program.shapes(text)
    if a.loops and WIDE in a.shape and TOKENS in a.shape
  ]
  assert {a.dtype for a in large} == {"bf16"}
  assert {a.times for a in large} == {DEPTH}


def ring(x, mesh):
  """Rows passed around all devices, and a kernel on what arrives."""

  def double(x_ref, y_ref):
    y_ref[...] = x_ref[...] * 2

  def hop(x, _):
    pairs = [(i, (i + 1) % 8) for i in range(8)]
    x = jax.lax.ppermute(x, "fsdp", pairs)
    kernel = pl.pallas_call(double, jax.typeof(x), name="double")
    return kernel(x), None

  @functools.partial(
    jax.shard_map,
    mesh=mesh,
    in_specs=P("fsdp"),
    out_specs=P("fsdp"),
    check_vma=False,
  )
  def around(x):
    return jax.lax.scan(hop, x, None, length=8)[0]

  return around(x)


@pytest.mark.tpu
def test_a_ring_of_kernels_for_a_tpu_counts_every_hop_of_every_layer():
  text = compile_layers(v5e(), ring).as_text()
  (hop,) = (c for c in program.collectives(text) if c.loops == 2)
  assert hop[:5] == (
    "collective-permute",
    ROWS * TOKENS * WIDTH * 2 // 8,
    8 * DEPTH,
    2,
    8,
  )
  assert hop.source.endswith("ppermute")
  (kernel,) = program.kernels(text)
  assert kernel[:3] == ("double", 8 * DEPTH, 2)
