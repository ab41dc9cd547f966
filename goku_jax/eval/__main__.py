"""Judges the flow model of a run.

  python -m goku_jax.eval --workdir=DIR --suite=digits --out=FOLDER

The suite `digits` draws videos from prompts and lets an honest judge
(`eval/digits.py`) read which digit they show and where it moves, beside real
held-out clips, their reconstruction by the autoencoder, and an untrained
model. FOLDER receives report.md, report.json, contact_sheet.png and
samples/*.mp4.

How many videos and how they are drawn is the section `evals` of the run's
config. Another one's takes its place, and nothing else of it:

  --config=configs/digits.py --config.evals.digits.num_videos=1000
"""

import time

from absl import flags

from goku_jax import job

flags.DEFINE_string("suite", "digits", "which figures: digits")
flags.DEFINE_string("out", None, "folder of the report; workdir by default")
flags.DEFINE_integer("step", None, "checkpoint; the newest whole by default")
flags.DEFINE_string("weights", "ema", "ema or params")
flags.DEFINE_float(
  "started", None, "epoch seconds: what the report's seconds count from"
)


def main(
  workdir,
  suite,
  weights,
  config=None,
  out=None,
  step=None,
  started=None,
):
  """Returns the figures of the suite."""
  started = time.time() if started is None else started
  if suite != "digits":
    raise job.UserError(f"--suite={suite} is not one of digits")
  settings = _settings(config, workdir, suite)
  out = out or workdir
  job.make_folder(out, "out")
  from goku_jax.eval import digits_suite
  from goku_jax.sample import restore

  return digits_suite.run(
    restore.restore(workdir, step=step, weights=weights),
    out,
    started=started,
    **settings,
  )


def _settings(config, workdir, suite) -> dict:
  """The suite's part of a config, or of the run's where none is given."""
  where = "--config" if config else f"{workdir}/config.json"
  evals = (config or job.load_config(workdir, "flow")).get("evals") or {}
  if suite not in evals:
    raise job.UserError(
      f"{where} has no evals.{suite}: give --config=FILE.py of an experiment"
      " that has, as configs/digits.py"
    )
  return evals[suite].to_dict()


if __name__ == "__main__":
  job.run(main, config="optional")
