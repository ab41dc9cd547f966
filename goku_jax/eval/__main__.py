"""Judges the model of a run.

  python -m goku_jax.eval --workdir=DIR --suite=digits --out=FOLDER

The suite `digits` draws videos of a flow model from prompts and lets an honest
judge (`eval/digits.py`) read which digit they show and where it moves, beside
real held-out clips, their reconstruction by the autoencoder, and an untrained
model. FOLDER receives report.md, report.json, contact_sheet.png and
samples/*.mp4.

  python -m goku_jax.eval --workdir=DIR --suite=reconstruction --data=VIDEOS \
    --fit=TRAINING --out=FOLDER

The suite `reconstruction` sends the videos and pictures of a folder through an
autoencoder and back, and measures what is lost (`eval/reconstruction.py`),
beside a linear coder fitted to TRAINING, where that is given. With
--lpips=WEIGHTS, by `convert --format=lpips`, LPIPS is measured too. DIR is a
run of stage=vae or a folder of weights. FOLDER receives report.md, report.json
and strip.png.

How many videos and how they are drawn or read is the section `evals` of the
run's config. Another one's takes its place, and nothing else of it:

  --config=configs/digits.py --config.evals.digits.num_videos=1000
"""

import time

from absl import flags

from goku_jax import job
from goku_jax import weights as folders

# The stage of the runs that each suite judges, and a config with its settings.
SUITES = {
  "digits": ("flow", "configs/digits.py"),
  "reconstruction": ("vae", "configs/reconstruction.py"),
}

flags.DEFINE_string("suite", "digits", f"which figures: {', '.join(SUITES)}")
flags.DEFINE_string("out", None, "folder of the report; workdir by default")
flags.DEFINE_integer("step", None, "checkpoint; the newest whole by default")
flags.DEFINE_string("data", None, "folder of videos that are reconstructed")
flags.DEFINE_string("fit", None, "folder that a linear coder is fitted to")
flags.DEFINE_string("lpips", None, "folder of the weights of LPIPS")
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
  data=None,
  fit=None,
  lpips=None,
  started=None,
):
  """Returns the figures of the suite."""
  started = time.time() if started is None else started
  if suite not in SUITES:
    raise job.UserError(f"--suite={suite} is not one of {', '.join(SUITES)}")
  if suite == "reconstruction" and not data:
    raise job.UserError("missing --data: folder of videos; --help explains")
  if suite != "reconstruction" and (data or fit or lpips):
    raise job.UserError(
      "--data, --fit and --lpips are for --suite=reconstruction"
    )
  settings = _settings(config, workdir, suite)
  out = out or workdir
  job.make_folder(out, "out")
  from goku_jax.sample import restore  # jax is slow to import

  if suite == "digits":
    from goku_jax.eval import digits_suite

    run = restore.restore(workdir, step=step, weights=weights)
    return digits_suite.run(run, out, started=started, **settings)
  from goku_jax.eval import lpips as judges
  from goku_jax.eval import reconstruction_suite

  autoencoder = restore.restore_vae(workdir, step=step, weights=weights)
  return reconstruction_suite.run(
    autoencoder,
    data,
    out,
    fit=fit,
    lpips_fn=lpips and judges.of_clips(judges.load(lpips)),
    started=started,
    **settings,
  )


def _settings(config, workdir, suite) -> dict:
  """The suite's part of a config, or of the run's where none is given."""
  stage, example = SUITES[suite]
  where = "--config" if config else f"{workdir}/config.json"
  if config is None and not folders.exists(workdir):
    config = job.load_config(workdir, stage)
  evals = (config or {}).get("evals") or {}
  if suite not in evals:
    raise job.UserError(
      f"{where} has no evals.{suite}: give --config=FILE.py of an experiment"
      f" that has, as {example}"
    )
  return evals[suite].to_dict()


if __name__ == "__main__":
  job.run(main, config="optional")
