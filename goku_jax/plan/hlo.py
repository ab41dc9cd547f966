"""The text of a compiled program, in the order in which it runs.

What XLA prints has computations of one instruction a line,

    %name = f32[8,128]{1,0:T(8,128)} add(%a, %b), attributes

A fusion, a loop or a call names the computation that it runs.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
TAIL = re.compile(r'\}(, execution_thread="[^"]*")?$')
INSTRUCTION = re.compile(
  r"\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)"
)
ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,<=]*)\]")
OP_NAME = re.compile(r'op_name="([^"]*)"')
# Of these the second use is the same run: `x-start` has already named it.
LATER = ("-done", "-update")


class Instruction(NamedTuple):
  """One line."""

  name: str
  type: str  # an array or a tuple of them, with layouts
  opcode: str
  rest: str  # operands and attributes
  is_root: bool

  def attribute(self, pattern: str) -> str | None:
    """The first group of a pattern in the operands and attributes."""
    match = re.search(pattern, self.rest)
    return match and match.group(1)

  @property
  def operands(self) -> list[str]:
    return re.findall(r"%([\w.\-]+)", self.rest.split(")", 1)[0])

  @property
  def op_name(self) -> str:
    """Which call of JAX it comes from; empty where the compiler forgot."""
    match = OP_NAME.search(self.rest)
    return match.group(1) if match else ""


class Place(NamedTuple):
  """Where an instruction runs."""

  computation: str
  home: str  # the same, or the one in which `fusion` is
  path: tuple[str, ...] = ()  # calls from the entry on, fusions left out
  times: int = 1  # a step
  loops: int = 0  # around it
  fusion: Instruction | None = None  # the outermost that it is part of


class Program(NamedTuple):
  """Computations by name."""

  entry: str
  computations: dict[str, list[Instruction]]
  devices: int

  def by_name(self, computation: str) -> dict[str, Instruction]:
    return {op.name: op for op in self.computations[computation]}


def parse(text: str) -> Program:
  """The computations of `compiled.as_text()`.

  Raises:
    ValueError: the text has no entry.
  """
  entry, computations, lines = None, {}, None
  for line in text.splitlines():
    if head := HEAD.match(line):
      lines = computations.setdefault(head.group(2), [])
      entry = head.group(2) if head.group(1) else entry
    elif TAIL.match(line):
      lines = None
    elif lines is None:
      continue
    elif INSTRUCTION.match(line):
      lines.append(line)
    elif lines:
      lines[-1] += line  # attributes of kernels hold line breaks
  if entry is None:
    raise ValueError("no compiled program: it has no ENTRY")
  sizes = [
    int(re.search(rf"{name}=(\d+)|$", text.split("\n", 1)[0]).group(1) or 1)
    for name in ("num_partitions", "replica_count")
  ]
  computations = {
    name: [_instruction(line) for line in lines]
    for name, lines in computations.items()
  }
  return Program(entry, computations, sizes[0] * sizes[1])


def _instruction(line):
  root, name, type_, opcode, rest = INSTRUCTION.match(line).groups()
  return Instruction(name, type_, opcode, rest, root is not None)


def walk(
  program: Program, place: Place | None = None
) -> Iterator[tuple[Instruction, Place]]:
  """Every instruction with its place, from the entry on.

  A computation called twice is met twice. Of a conditional all branches are
  met, as if each were taken; conditions of loops are not.
  """
  place = place or Place(program.entry, program.entry)
  for op in program.computations[place.computation]:
    yield op, place
    for inside in _called(program, op, place):
      yield from walk(program, inside)


def _called(program, op, place):
  """Places of the computations that an instruction runs."""
  if op.opcode.endswith(LATER):
    return
  for name in _names(op):
    if place.fusion:
      yield place._replace(computation=name)
    elif op.opcode.startswith("fusion"):
      yield place._replace(computation=name, fusion=op)
    else:
      path = (*place.path, op.name)
      inside = place._replace(computation=name, home=name, path=path)
      if op.opcode == "while":
        times = place.times * trips(program, op, place)
        inside = inside._replace(times=times, loops=place.loops + 1)
      yield inside


def _names(op):
  if op.opcode == "conditional":
    many = op.attribute(r", branch_computations=\{([^}]*)\}") or ""
    two = r", (?:true|false)_computation=%?([\w.\-]+)"
    return re.findall(r"[\w.\-]+", many) or re.findall(two, op.rest)
  # Of a reduction `to_apply` is what it does to two numbers.
  calls = {"while": "body", "call": "to_apply", "call-start": "to_apply"}
  word = calls.get(op.opcode, "calls")
  name = op.attribute(rf", {word}=%?([\w.\-]+)")
  return [name] if name else []


def trips(program: Program, loop: Instruction, place: Place) -> int:
  """How often a loop runs; 1 where the program does not say.

  The compiler's own count, else from where the counter starts to the limit
  that the loop's condition compares it with: a first run may be peeled off.
  """
  known = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"')
  if known:
    return int(known)
  condition = program.by_name(loop.attribute(r", condition=%?([\w.\-]+)"))
  (compare,) = (op for op in condition.values() if op.is_root)
  outside = program.by_name(place.computation)
  carried = outside[loop.operands[0]].operands  # of the tuple at the start
  ends = []
  for name in compare.operands:
    op = condition[name]
    if op.opcode == "get-tuple-element" and len(carried) > 1:
      ends.append(_number(outside, carried[int(op.attribute(r"index=(\d+)"))]))
    else:
      ends.append(_number(condition, name))
  if len(ends) == 2 and None not in ends:
    return abs(ends[1] - ends[0]) + ("direction=LE" in compare.rest)
  limits = [_number(condition, name) for name in condition]
  return max((n for n in limits if n is not None), default=1)


def _number(here, name):
  """A scalar constant, perhaps copied; None for anything else."""
  op = here[name]
  while op.opcode in ("copy", "bitcast", "convert") and op.operands[0] in here:
    op = here[op.operands[0]]
  literal = re.match(r"(-?\d+)\)", op.rest)
  is_number = op.opcode == "constant" and re.match(r"[su]\d+\[\]", op.type)
  return int(literal.group(1)) if is_number and literal else None


def arrays(type_: str) -> list[tuple[str, tuple[int, ...]]]:
  """Dtypes and shapes of a type, tuples flattened, tokens left out."""
  return [
    (dtype, tuple(int(n) for n in dims.replace("<=", "").split(",") if n))
    for dtype, dims in ARRAY.findall(type_)
    if dtype != "token"
  ]


def members(type_: str) -> list[str]:
  """Types that a tuple holds, perhaps tuples again; of an array, itself."""
  if not type_.startswith("("):
    return [type_]
  found, depth, start = [], 0, 1
  for i, letter in enumerate(type_):
    depth += letter in "([{"
    depth -= letter in ")]}"
    if (letter == "," and depth == 1) or depth == 0:
      found.append(type_[start:i].strip())
      start = i + 1
    if depth == 0:
      break
  return [member for member in found if member]
