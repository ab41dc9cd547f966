"""GenEval: objects, counts, colours and places in images (Ghosh et al. 2023).

The tool walks over `{line:05}/samples/{i:05}.png` and reads what to look for
in `{line:05}/metadata.jsonl`. Its score is the mean of the accuracies of six
tasks.
"""

import json
import pathlib

from goku_jax.eval.benchmarks.layout import (
  Benchmark,
  Beside,
  Sample,
  check_names,
)
from goku_jax.typing import UserError

IMAGES = 4
TOTAL = 553 * IMAGES


def read(source) -> Benchmark:
  """The images of all prompts.

  Args:
    source: the tool's prompts/evaluation_metadata.jsonl.

  Raises:
    UserError: it is missing, or a line is not such an object.
  """
  try:
    lines = pathlib.Path(source).read_bytes().splitlines()
  except OSError as error:
    raise UserError(
      f"{source}: cannot read it ({error.strerror}); give"
      " evaluation_metadata.jsonl of GenEval's prompts"
    ) from error
  samples = []
  for row, line in enumerate(lines):
    try:
      metadata = json.loads(line)
      prompt, _ = metadata["prompt"], metadata["tag"]
    except (ValueError, KeyError, TypeError) as error:
      message = f"{source}, line {row + 1}: not GenEval's metadata ({error})"
      raise UserError(message) from error
    beside = Beside(f"{row:05}/metadata.jsonl", json.dumps(metadata))
    samples += [
      Sample(
        prompt, f"{row:05}/samples/{i:05}.png", len(samples) + i, None, beside
      )
      for i in range(IMAGES)
    ]
  reads = ("[0-9]*/samples/*",)
  return check_names(Benchmark("geneval", tuple(samples), TOTAL, reads))
