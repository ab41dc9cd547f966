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

from absl import flags

from goku_jax import job

flags.DEFINE_string("suite", "digits", "which figures: digits")
flags.DEFINE_string("out", None, "folder of the report; workdir by default")
flags.DEFINE_integer("step", None, "checkpoint; the newest whole by default")
flags.DEFINE_string("weights", "ema", "ema or params")
flags.DEFINE_float("seconds_before", 0.0, "of what led here, for the report")


def main(
  workdir,
  suite,
  weights,
  seconds_before,
  config=None,
  out=None,
  step=None,
):
  """Returns the figures of the suite."""
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
    seconds_before=seconds_before,
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
