"""Judges the model of a run.

  python -m goku_jax.eval --workdir=DIR --suite=losses,digits --out=FOLDER

Restores parameters or their average (--weights=ema,params judges both) at
--step=N, the latest or the best checkpoint, on all devices there are, and runs
suites. FOLDER (the workdir's folder `evals` by default) receives results.jsonl,
a record each, and made of it results.md, curves/, tensorboard/ and, with what
training drew, report.html. With --watch
every checkpoint that training saves is judged once, until that of the last
step; started again, it goes on with those that have no record.

`losses` is the validation loss at fixed noise, by bins of t, of images and
videos apart; --step=best is that with the least of the figure --best, or with
max: before it the largest.

The suite `digits` draws videos of a flow model from prompts and lets an honest
judge (`eval/digits.py`) read which digit they show and where it moves, beside
real held-out clips, their reconstruction by the autoencoder, and an untrained
model. FOLDER receives report.md, report.json, contact_sheet.png and
samples/*.mp4 too (in a folder for each step with --watch, and in one for each
of several --weights).

`fid` (FID, sFID, Inception score, precision, recall as ADM's evaluator has
them), `fvd` (and KVD) and `vgg16` are distances between what is drawn and what
is real, by networks with weights that `convert` brought: configs/distances.py
has their settings, and those of `clip_score`, of videos and their captions, and
of `ucf101`, FVD and Inception score of videos of UCF-101's captions.

  python -m goku_jax.eval --workdir=DIR --suite=vgg16 \
    --config=configs/distances.py --config.evals.vgg16.weights=LPIPS

`vbench`, `geneval`, `dpg` and `compbench` draw every prompt of the paper's
benchmarks as often as these count, to FOLDER/SUITE in the layout that their
tools read, and prove it complete (configs/benchmarks.py). What VBench's tool
found then becomes totals without a run: --suite=vbench --results=FILE.

  python -m goku_jax.eval --workdir=DIR --suite=reconstruction --data=VIDEOS \
    --fit=TRAINING --out=FOLDER

The suite `reconstruction` sends the videos and pictures of a folder through an
autoencoder and back, and measures what is lost (`eval/reconstruction.py`),
beside a linear coder fitted to TRAINING, where that is given. With
--lpips=WEIGHTS, by `convert --format=lpips`, LPIPS is measured too. DIR is a
run of stage=vae or a folder of weights. FOLDER (DIR by default) receives
report.md, report.json and strip.png.

How many videos and how they are drawn or read is the section `evals` of the
run's config. What another one has of it takes its place, and nothing else:

  --config=configs/digits.py --config.evals.digits.num_videos=1000
"""

import contextlib
import pathlib
import time

from absl import flags

from goku_jax import job
from goku_jax import weights as folders

# The stage of the runs that each suite judges, and a config with its settings.
SUITES = {
  "losses": ("flow", "configs/digits.py"),
  "digits": ("flow", "configs/digits.py"),
  "fid": ("flow", "configs/distances.py"),
  "fvd": ("flow", "configs/distances.py"),
  "vgg16": ("flow", "configs/distances.py"),
  "clip_score": ("flow", "configs/distances.py"),
  "ucf101": ("flow", "configs/distances.py"),
  "vbench": ("flow", "configs/benchmarks.py"),
  "geneval": ("flow", "configs/benchmarks.py"),
  "dpg": ("flow", "configs/benchmarks.py"),
  "compbench": ("flow", "configs/benchmarks.py"),
  "reconstruction": ("vae", "configs/reconstruction.py"),
}

BEST = "losses.loss.all"

flags.DEFINE_string(
  "suite", "digits", f"which figures, commas between: {', '.join(SUITES)}"
)
flags.DEFINE_string("out", None, "folder of what is found")
flags.DEFINE_string("step", "latest", "of a checkpoint, or latest, or best")
flags.DEFINE_string(
  "best", BEST, "SUITE.FIGURE that is to be least, or max:SUITE.FIGURE"
)
flags.DEFINE_bool("watch", False, "judge each checkpoint as it is saved")
flags.DEFINE_string("data", None, "folder of videos that are reconstructed")
flags.DEFINE_string("fit", None, "folder that a linear coder is fitted to")
flags.DEFINE_string("results", None, "what VBench's tool wrote, for its totals")
flags.DEFINE_string("lpips", None, "folder of the weights of LPIPS")
flags.DEFINE_string("weights", "ema", "ema, params, or both with a comma")
flags.DEFINE_string("text_encoder", None, "its folder, if it moved")
flags.DEFINE_float(
  "started", None, "epoch seconds: what the report's seconds count from"
)


def main(
  suite,
  weights,
  workdir=None,
  step="latest",
  best=BEST,
  watch=False,
  config=None,
  out=None,
  data=None,
  fit=None,
  lpips=None,
  text_encoder=None,
  results=None,
  started=None,
):
  """Returns the figures of the suites."""
  started = time.time() if started is None else started
  names = suite.split(",")
  for name in names:
    if name not in SUITES:
      known = ", ".join(SUITES)
      raise job.UserError(f"--suite={name} is not one of {known}")
  if results:
    if names != ["vbench"]:
      raise job.UserError("--results is for --suite=vbench")
    from goku_jax.eval import benchmark_suite

    return benchmark_suite.fold(results)
  if not workdir:
    raise job.UserError("missing --workdir: folder of the run; --help explains")
  if "reconstruction" in names:
    if len(names) > 1 or watch:
      raise job.UserError("--suite=reconstruction goes alone, without --watch")
    return _reconstruct(
      workdir, weights, config, step, out, data, fit, lpips, started
    )
  if data or fit or lpips:
    raise job.UserError(
      "--data, --fit and --lpips are for --suite=reconstruction"
    )
  wanted = {name: _settings(config, workdir, name) for name in names}
  out = pathlib.Path(out or pathlib.Path(workdir, "evals"))
  from goku_jax.parallel import multihost  # jax is slow to import

  multihost.initialize()
  return _judge(
    wanted,
    workdir,
    out,
    step=step,
    best=best,
    watch=watch,
    weights=weights.split(","),
    text_encoder=text_encoder,
    started=started,
  )


def _judge(
  wanted, workdir, out, *, step, best, watch, weights, text_encoder, started
):
  import jax

  from goku_jax.eval import report, results, suites
  from goku_jax.parallel import mesh as meshes

  mesh = meshes.make_mesh(replica=1, fsdp=-1, sequence=1, tensor=1)
  is_first = jax.process_index() == 0
  with contextlib.ExitStack() as stack:
    log = refusal = None
    try:
      if is_first:
        log = stack.enter_context(results.open_results(out))
    except job.UserError as error:
      refusal = error
    if not suites.everyone(int(refusal is None)):
      raise refusal or job.UserError(f"process 0 cannot write to {out}")
    stack.enter_context(meshes.use(mesh))
    judge = lambda number, **more: suites.judge(
      log,
      wanted,
      workdir,
      step=number,
      weights=weights,
      mesh=mesh,
      text_encoder=text_encoder,
      **more,
    )
    tell = lambda: log and report.write(workdir, out)
    if not watch:
      known = results.Results(out)
      number = suites.read_step(step, known, best, weights[0])
      found = judge(number, out=out, started=started)
      tell()
      return found
    total = job.load_config(workdir, "flow").total_steps
    done, found = set(), {}
    for number in suites.follow(workdir, total, done.__contains__):
      try:
        found = judge(number, out=out / f"{number:08d}", again=False)
      except job.UserError:
        if suites.is_there(workdir, number):
          raise
        print(f"step {number} was removed before it was judged", flush=True)
      done.add(number)
      tell()
    return {"steps": sorted(done), **found}


def _reconstruct(
  workdir, weights, config, step, out, data, fit, lpips, started
):
  if not data:
    raise job.UserError("missing --data: folder of videos; --help explains")
  settings = _settings(config, workdir, "reconstruction")
  out = out or workdir
  job.make_folder(out, "out")
  from goku_jax.eval import lpips as judges  # jax is slow to import
  from goku_jax.eval import reconstruction_suite, results, suites
  from goku_jax.sample import restore

  number = suites.read_step(step, results.Results(out), BEST, weights)
  autoencoder = restore.restore_vae(workdir, step=number, weights=weights)
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
  configs = [config] if config else []
  if not folders.exists(workdir):
    configs.append(job.load_config(workdir, stage))
  for one in configs:
    if suite in (evals := one.get("evals") or {}):
      return evals[suite].to_dict()
  where = "--config" if config else f"{workdir}/config.json"
  raise job.UserError(
    f"{where} has no evals.{suite}: give --config=FILE.py of an experiment"
    f" that has, as {example}"
  )


if __name__ == "__main__":
  job.run(main, config="optional")
