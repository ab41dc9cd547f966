"""What a compiled program does: traffic, arrays, kernels and memory.

All of one device, and read from text (`compiled.as_text()`) alone, so that a
program compiled ahead of time for TPUs can be judged with none at hand.
"""

import math
import re
from typing import NamedTuple

from goku_jax.plan import hlo

KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)
# What the network between slices of a pod is told to do.
SLICE_KINDS = {"one-to-one": "collective-permute"}
SLICES = r'_xla_megascale_transfer_type="(\w+)"'
PALLAS = ("tpu_custom_call", "mosaic_gpu", "triton_kernel_call", "gpu.triton")
# These make no array of their own: they name, pass on, or start what another
# instruction, or one of a computation that they call, makes.
NOTHING = {
  "parameter",
  "constant",
  "tuple",
  "get-tuple-element",
  "bitcast",
  "while",
  "conditional",
  "call",
  "call-done",
  "async-done",
  "opt-barrier",
  "after-all",
  "partition-id",
  "replica-id",
  "send",
  "send-done",
  "recv",
}


class Collective(NamedTuple):
  """One array that devices exchange."""

  kind: str  # of KINDS
  bytes: int  # of the result of one run, on one device
  times: int  # runs a step
  loops: int  # around it; 0 is outside of the scan of layers
  group: int  # devices, or slices, that exchange it
  dtype: str
  shape: tuple[int, ...]  # of the result, on one device
  source: str  # the call of JAX that it comes from, with modules' names
  crosses_slices: bool = False  # over the network between slices of a pod


class Array(NamedTuple):
  """One array that is made, in memory of one device."""

  dtype: str
  shape: tuple[int, ...]
  op: str  # what makes it; of a fusion, the last instruction in it
  source: str  # the call of JAX that it comes from
  times: int  # a step
  loops: int  # around it


class Kernel(NamedTuple):
  """One Pallas kernel."""

  name: str
  times: int  # a step
  loops: int  # around it
  source: str  # the call of JAX that it comes from


class Memory(NamedTuple):
  """Bytes of one device."""

  arguments: int
  outputs: int
  aliased: int  # outputs that take the place of donated arguments
  temporary: int
  code: int
  peak: int | None  # by the compiler's own count, where it tells
  host: int  # in the memory of the host: what is offloaded

  @property
  def live(self) -> int:
    """What the program needs at once, code with it."""
    kept = self.arguments + self.outputs - self.aliased
    return kept + self.temporary + self.code


def memory(compiled) -> Memory:
  """What a compiled program needs (`jax.stages.Compiled`)."""
  stats = compiled.memory_analysis()
  of = lambda name, where="": getattr(stats, f"{where}{name}_size_in_bytes")
  host = of("argument", "host_") + of("output", "host_")
  return Memory(
    arguments=of("argument"),
    outputs=of("output"),
    aliased=of("alias"),
    temporary=of("temp"),
    code=of("generated_code"),
    peak=getattr(stats, "peak_memory_in_bytes", None) or None,
    host=host - of("alias", "host_") + of("temp", "host_"),
  )


def collectives(text: str) -> list[Collective]:
  """Every array that the program exchanges, in the order of the text.

  Several arrays in one exchange are as many entries, but the pieces of an
  all-to-all are one of shape (pieces, ...). An exchange in two halves counts
  once, as does one that the TPU's compiler spreads over several fusions; a
  sum that it fuses with the split of the result is a reduce-scatter. Between
  slices of a pod, an exchange has a part of its own (`crosses_slices`).
  """
  program, found, chains = hlo.parse(text), [], set()
  for op, place in hlo.walk(program):
    kind = _kind(op, place)
    if kind is None:
      continue
    chain = op.attribute(r'chain_id="(\d+)"')
    if chain is not None:  # each fusion of the chain holds it again
      key = place.path, op.attribute(r"channel_id=(\d+)"), chain
      if key in chains:
        continue
      chains.add(key)
    results = hlo.arrays(_result(op, kind, place))
    if kind == "all-to-all" and len(results) > 1:
      (dtype, shape), *_ = results
      results = [(dtype, (len(results), *shape))]
    found += [
      Collective(
        kind,
        num_bytes(dtype, shape),
        place.times,
        place.loops,
        _group(op, program.devices),
        dtype,
        shape,
        _source(program, op, place),
        op.opcode == "recv",
      )
      for dtype, shape in results
    ]
  return found


def _kind(op, place):
  if op.opcode == "recv":
    kind = (op.attribute(SLICES) or "").lower().replace("_", "-")
    return SLICE_KINDS.get(kind, kind) or None
  kind = op.opcode.removesuffix("-start").removeprefix("ragged-")
  if kind == "all-reduce" and _is_split(place):
    return "reduce-scatter"
  return kind if kind in KINDS else None


def _is_split(place):
  """Whether devices keep only their part of a sum."""
  return place.fusion and "all-reduce-scatter" in place.computation


def _result(op, kind, place):
  """The type of what arrives."""
  if op.opcode == "recv":  # array, context, token
    return hlo.members(op.type)[0]
  op = place.fusion if _is_split(place) else op
  if op.opcode.endswith("-start") and kind != "all-reduce":
    return hlo.members(op.type)[1]  # operands, results, contexts
  return op.type


def _group(op, devices):
  """How many devices exchange; all where the program does not say."""
  if pairs := op.attribute(r"source_target_pairs=\{(\{[\d,{}]*\})\}"):
    return _ring(re.findall(r"(\d+),(\d+)", pairs))
  if slices := op.attribute(r'_xla_megascale_target="\{([\d,:]+)\}'):
    return _count(slices)
  if listed := op.attribute(r"replica_groups=\{\{([\d,]+)\}"):
    return _count(listed)
  if counted := op.attribute(r"replica_groups=\[[\d,]*?(\d+)\]<="):
    return int(counted)
  if axes := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", op.rest):
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", axes.group(1)))
    # Of an axis that is split, the part follows it: 'a':(1)2.
    used = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", axes.group(2))
    return math.prod(int(part or sizes[name]) for name, part in used)
  return devices


def _count(numbers):
  """How many numbers a list such as 0,1,4:7 has."""
  spans = [span.split(":") for span in numbers.split(",")]
  return sum(int(span[-1]) - int(span[0]) + 1 for span in spans)


def _ring(pairs):
  """Devices that the longest chain of senders and receivers holds."""
  groups = {}
  for pair in pairs:
    joined = set(pair).union(*(groups.get(device, ()) for device in pair))
    groups.update(dict.fromkeys(joined, joined))
  return max(map(len, groups.values()))


def num_bytes(dtype: str, shape: tuple[int, ...]) -> int:
  """Bytes of an array, without the padding of its layout."""
  bits = re.search(r"\d+", dtype)  # pred, of a byte, has none
  return -(-math.prod(shape) * (int(bits.group()) if bits else 8) // 8)


def _source(program, op, place):
  """The name of an instruction, else of the nearest that it works for."""
  here = program.by_name(place.home)
  users = {}
  for each in here.values():
    for name in each.operands:
      users.setdefault(name, []).append(each.name)
  from_ = lambda name: here[name].operands
  into = lambda name: users.get(name, ())
  start = place.fusion or op
  return (
    op.op_name or _nearest(here, start, from_) or _nearest(here, start, into)
  )


def _nearest(here, op, neighbours):
  """The first name on the way to neighbours and theirs; perhaps empty."""
  queue = [op.name]
  for name in queue:
    if here[name].op_name:
      return here[name].op_name
    queue += [n for n in neighbours(name) if n in here and n not in queue]
  return ""


def shapes(text: str) -> list[Array]:
  """Every array that instructions make, with how many loops are around it.

  Inside of a fusion nothing lies in memory, so only its results count, and of
  these not what takes the place of an operand. `dynamic-update-slice` writes
  into an array that is there already, such as the outputs of all layers.
  """
  program = hlo.parse(text)
  return [
    Array(dtype, shape, made_by, op.op_name, place.times, place.loops)
    for op, place in hlo.walk(program)
    if not place.fusion and not _makes_nothing(op)
    for dtype, shape, made_by in _made(program, op)
  ]


def _makes_nothing(op):
  return op.opcode in NOTHING or (
    op.opcode.endswith("-start") and not op.opcode.startswith("all-reduce")
  )


def _made(program, op):
  """Dtype, shape and maker of each result that is a new array, no scalar."""
  results = hlo.arrays(op.type)
  makers = [op.opcode] * len(results)
  if op.opcode == "fusion":
    body = program.computations[op.attribute(r", calls=%?([\w.\-]+)")]
    makers = _makers(body, len(results))
  pairs = op.attribute(r"output_to_operand_aliasing=\{(.*?)\}\)\}") or ""
  reused = set(re.findall(r"\{(\d*)\}: \(", pairs))
  for i, ((dtype, shape), made_by) in enumerate(
    zip(results, makers, strict=True)
  ):
    if shape and reused.isdisjoint(("", str(i))):
      yield dtype, shape, made_by


def _makers(body, count):
  """Opcodes that make the results of a fused computation."""
  here = {op.name: op for op in body}
  (root,) = (op for op in body if op.is_root)
  if root.opcode != "tuple":
    return [_maker(here, root)] * count
  return [_maker(here, here[name]) for name in root.operands]


def _maker(here, op):
  while op.opcode == "bitcast" or "AsyncCollectiveStart" in op.rest:
    op = here[op.operands[0]]
  return op.opcode


def kernels(text: str) -> list[Kernel]:
  """Every Pallas kernel of the program, in the order of the text."""
  found = []
  for op, place in hlo.walk(hlo.parse(text)):
    target = op.attribute(r'custom_call_target="([^"]+)"') or ""
    if any(word in target for word in PALLAS):
      name = re.sub(r"(\.\d+|\.clone|\.remat\d*)+$", "", op.name)
      found.append(Kernel(name, place.times, place.loops, op.op_name))
  return found
