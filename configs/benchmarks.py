"""The paper's benchmarks, as the job eval samples them (Tables 5, 7 and 8).

  python -m goku_jax.eval --workdir=RUN --suite=geneval \
    --config=configs/benchmarks.py \
    --config.evals.geneval.prompts=evaluation_metadata.jsonl

prompts is a copy of the benchmark's own: VBench_full_info.json (without it,
that of the installed package vbench), GenEval's evaluation_metadata.jsonl, the
folder of DPG-Bench's prompts, T2I-CompBench's examples/dataset. Goku's 0.76 on
GenEval is with rewritten prompts, its 0.70 with the originals.
"""

import ml_collections as mlc
from ml_collections import config_dict


def get_config():
  """The section `evals` alone."""
  config = mlc.ConfigDict()
  config.evals = dict(
    vbench=benchmark(num_frames=49, fps=8),
    geneval=benchmark(),
    dpg=benchmark(),
    compbench=benchmark(),
  )
  return config


def benchmark(**changes):
  """Settings of one suite."""
  return (
    dict(
      prompts=config_dict.placeholder(str),
      num_frames=1,
      fps=config_dict.placeholder(int),  # of the files of videos
      size=config_dict.placeholder(tuple),  # height, width; None: as trained
      num_steps=50,
      guidance_scale=5.0,
      shift=3.0,
      seed=0,
      rewrite=dict(  # a file, or any endpoint of the OpenAI kind; or neither
        file=config_dict.placeholder(str),
        endpoint=config_dict.placeholder(str),
        model=config_dict.placeholder(str),
        instruction=config_dict.placeholder(str),  # a file; ours by default
        key_variable="OPENAI_API_KEY",  # of the environment
      ),
    )
    | changes
  )
