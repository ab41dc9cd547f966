"""T2I-CompBench: attributes bound to objects (Huang et al. 2023).

The tool judges one category at a time, from every file of
`{category}/samples`: `{prompt}_{k:06}.png` with k over the whole category. The
prompt is what stands before the first "_". What it finds it writes beside
`samples`.
"""

import pathlib

from goku_jax.eval.benchmarks.layout import Benchmark, Sample, check_names
from goku_jax.typing import UserError

IMAGES = 10
PROMPTS = 300  # of a category
CATEGORIES = ("color", "shape", "texture")  # those of Table 5


def read(source) -> Benchmark:
  """The images of all prompts of the paper's categories.

  Args:
    source: the tool's folder examples/dataset, of {category}_val.txt.

  Raises:
    UserError: a file is missing, or the tool could not tell its prompts.
  """
  samples = []
  for category in CATEGORIES:
    path = pathlib.Path(source) / f"{category}_val.txt"
    try:
      lines = path.read_bytes().decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
      raise UserError(
        f"{path}: cannot read it ({error}); give T2I-CompBench's folder"
        " examples/dataset"
      ) from error
    prompts = [line.strip() for line in lines if line.strip()]
    if torn := [prompt for prompt in prompts if "_" in prompt]:
      raise UserError(f"{path}: the tool cannot read the '_' of {torn[0]!r}")
    for k in range(IMAGES * len(prompts)):
      prompt = prompts[k // IMAGES]
      name = f"{category}/samples/{prompt}_{k:06}.png"
      samples.append(Sample(prompt, name, len(samples)))
  total = IMAGES * PROMPTS * len(CATEGORIES)
  reads = tuple(f"{category}/samples/*" for category in CATEGORIES)
  return check_names(Benchmark("compbench", tuple(samples), total, reads))
