"""The paper's benchmarks: their prompts, and the files that their tools read.

Images and videos are made here and judged there: each tool has networks and
pinned libraries of its own.
"""

from goku_jax.eval.benchmarks import compbench, dpg, geneval, vbench

# Each takes where the user has the prompts and returns a `layout.Benchmark`.
READERS = {
  "vbench": vbench.read,
  "geneval": geneval.read,
  "dpg": dpg.read,
  "compbench": compbench.read,
}
