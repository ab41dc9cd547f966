"""Judges the flow model of a run.

  python -m goku_jax.eval --workdir=DIR --suite=digits --out=FOLDER

The suite `digits` draws videos from prompts and lets an honest judge
(`eval/digits.py`) read which digit they show and where it moves, beside real
held-out clips, their reconstruction by the autoencoder, and an untrained
model. FOLDER receives report.md, report.json, contact_sheet.png and
samples/*.mp4.
"""

from absl import flags

from goku_jax import job

flags.DEFINE_string("suite", "digits", "which figures: digits")
flags.DEFINE_string("out", None, "folder of the report; workdir by default")
flags.DEFINE_integer("num_videos", 252, "generated videos", lower_bound=1)
flags.DEFINE_integer("num_steps", 25, "of the sampler", lower_bound=1)
flags.DEFINE_float("guidance_scale", 3.0, "1: none; higher: closer to text")
flags.DEFINE_float("shift", 3.0, "above 1: more steps near noise")
flags.DEFINE_integer("seed", 0, "of noise and of the judge", lower_bound=0)
flags.DEFINE_integer("step", None, "checkpoint; the newest whole by default")
flags.DEFINE_string("weights", "ema", "ema or params")
flags.DEFINE_float("seconds_before", 0.0, "of what led here, for the report")


def main(
  workdir,
  suite,
  num_videos,
  num_steps,
  guidance_scale,
  shift,
  seed,
  weights,
  seconds_before,
  out=None,
  step=None,
):
  """Returns the figures of the suite."""
  if suite != "digits":
    raise job.UserError(f"--suite={suite} is not one of digits")
  out = out or workdir
  job.make_folder(out, "out")
  from goku_jax.eval import digits_suite
  from goku_jax.sample import restore

  return digits_suite.run(
    restore.restore(workdir, step=step, weights=weights),
    out,
    num_videos=num_videos,
    seconds_before=seconds_before,
    seed=seed,
    sampling=dict(
      num_steps=num_steps, guidance_scale=guidance_scale, shift=shift
    ),
  )


if __name__ == "__main__":
  job.run(main)
