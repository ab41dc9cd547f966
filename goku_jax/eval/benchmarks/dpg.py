"""DPG-Bench: dense prompts, asked about part by part (Hu et al. 2024, ELLA).

The tool takes every file of one flat folder for `{item}.png`, a square of four
samples of R x R pixels, and cuts it at R. By default it writes its own results
into that folder and then fails on them: give it --res-path elsewhere.
"""

import pathlib

from goku_jax.eval.benchmarks.layout import (
  GRID,
  Benchmark,
  Sample,
  check_names,
)
from goku_jax.typing import UserError

IMAGES = GRID**2
TOTAL = 1065 * IMAGES


def read(source) -> Benchmark:
  """The images of all prompts, four of each in one picture.

  Args:
    source: the tool's folder dpg_bench/prompts, of {item}.txt.

  Raises:
    UserError: there is none, or a name that the tool would not find again.
  """
  samples = []
  for path in sorted(pathlib.Path(source).glob("[!.]*.txt")):
    if "." in path.stem:
      raise UserError(f"{path}: the tool reads names up to the first dot")
    try:
      prompt = path.read_bytes().decode().strip()
    except (OSError, UnicodeDecodeError) as error:
      raise UserError(f"{path}: cannot read it ({error})") from error
    samples += [
      Sample(prompt, f"{path.stem}.png", len(samples) + i, i)
      for i in range(IMAGES)
    ]
  if not samples:
    raise UserError(f"{source}: no prompt; give DPG-Bench's folder of .txt")
  return check_names(Benchmark("dpg", tuple(samples), TOTAL, ("*",)))
