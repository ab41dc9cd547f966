"""Trains and judges the arms; each judgement is a record that is kept.

<workdir>/vae/, latents/SIZE/   what all arms share
<workdir>/runs/PART/ARM/SEED/   a run each
<workdir>/records.jsonl         a line a judgement
"""

import itertools
import pathlib
from typing import NamedTuple

from goku_jax import checkpoint, files, job, lines
from goku_jax.ablations import arms, judge
from goku_jax.prepare.latents import prepare
from goku_jax.sample import codec as codecs
from goku_jax.sample import restore
from goku_jax.train import goodput
from goku_jax.train.loop import train
from goku_jax.typing import UserError

RECORDS, LOCK = "records.jsonl", ".comparing"
FLOORS = ("real", "reconstructed")


class Question(NamedTuple):
  """What is judged: a checkpoint, and how it is sampled."""

  step: int
  solver: str
  calls: int


NOTHING = Question(0, "", 0)  # real samples, which nothing draws


def run(config, workdir) -> list[dict]:
  """Does all that has no record yet; returns the records."""
  check(config)
  workdir = pathlib.Path(workdir)
  with files.locked(workdir / LOCK, f"another job compares in {workdir}"):
    return _run(config, workdir)


def check(config):
  """Refuses numbers that no study can follow."""
  if config.seeds < 1:
    raise UserError(f"seeds={config.seeds}: set 1 or more")
  for part, steps in config.steps.items():
    if config.checkpoints < 1 or steps % config.checkpoints:
      raise UserError(
        f"steps.{part}={steps}: set a multiple of"
        f" checkpoints={config.checkpoints}"
      )


def _run(config, workdir):
  records = workdir / RECORDS
  log, todo = lines.Log(records), []
  known = {_name(row) for row in lines.read(records)}
  for arm, seed in itertools.product(arms.read(config), range(config.seeds)):
    asked = [
      question
      for question in questions(config, arm)
      if (arm.part, arm.name, seed, *question) not in known
    ]
    if arm.is_judged and asked:
      todo.append((arm, seed, asked))
  todo.sort(key=lambda x: (list(arms.PARTS).index(x[0].part), x[1]))
  cost = lambda work: _cost(config, *work)
  total, done = sum(map(cost, todo)), 0
  progress = job.Progress(total, 0, "all", every_s=0)
  progress.update(0)
  for work in todo:
    arm, seed, asked = work
    for row in _floors(config, workdir, arm, seed, known):
      log.append(row)
      known.add(_name(row))
    for question, figures in answers(config, workdir, arm, seed, asked):
      log.append(_record(arm.part, arm.name, seed, question, figures))
    done += cost(work)
    progress.update(done)
  return lines.read(records)


def questions(config, arm) -> list[Question]:
  """Checkpoints at the usual calls, and the last one at many, and solvers."""
  is_sweep = arm.part in ("images", "clips")
  usual, *others = _process(config, arm).solvers
  steps = arms.checkpoints(arm, config.checkpoints)
  found = [Question(step, usual, config.calls) for step in steps]
  if is_sweep:
    found += [
      Question(arm.steps, solver, calls)
      for solver in (usual, *others)
      for calls in config.sweep
      if solver != "heun" or calls % 2 == 0
    ]
  return list(dict.fromkeys(found))


def _process(config, arm):
  return restore.process_of(arm_config(config, arm, 0))


def arm_config(config, arm, seed):
  """The config of an arm's run, but for its paths."""
  made = config["images" if arm.part == "images" else "clips"]
  made = made.copy_and_resolve_references()
  with made.unlocked():
    made.update_from_flattened_dict(arm.changes)
    made.seed = seed
    made.total_steps = arm.steps
    made.save_every_steps = arm.steps // config.checkpoints
    made.show_every_steps = arm.steps
    made.checkpoint.keep = config.checkpoints
    made.sample.size = (config.sides[arm.size],) * 2
    made.sample.num_frames = config.num_frames.get(arm.size, 1)
  return made


def answers(config, workdir, arm, seed, asked):
  """Trains an arm as far as it is not, and judges it."""
  folder = trained(config, workdir, arm, seed)
  a_step = _seconds_a_step(folder)
  for question in asked:
    begins = question.step == 0
    run = restore.restore(
      trained(config, workdir, arm.begins_at, seed) if begins else folder,
      step=arm.begins_at.steps if begins else question.step,
    )
    asks = _asks(config, arm)
    videos, a_sample = asks.draw(run, question.calls, question.solver)
    yield (
      question,
      {
        **asks.figures(videos),
        "seconds_a_sample": a_sample,
        "seconds_a_step": a_step,
      },
    )


def _seconds_a_step(folder) -> float:
  """Of the last start of a run."""
  rows = lines.read(folder / goodput.NAME)
  rows = [row for row in rows if row["began"] == rows[-1]["began"]]
  first, last = rows[0], rows[-1]
  seconds = last["seconds"]["step"] - first["seconds"]["step"]
  return seconds / max(last["step"] - first["step"], 1)


def trained(config, workdir, arm, seed) -> pathlib.Path:
  """The workdir of an arm's run, trained to its end."""
  name = "".join(c if c.isalnum() else "_" for c in arm.name)
  folder = workdir / "runs" / arm.part / name / str(seed)
  if _is_done(folder, arm.steps):
    return folder
  made = arm_config(config, arm, seed)
  with made.unlocked():
    if arm.size != "images":  # those are learnt as pixels
      made.data.path = str(latents(config, workdir, arm.size))
    if arm.begins_at:
      made.init_from = str(trained(config, workdir, arm.begins_at, seed))
  print(f"{arm.part}: {arm.name}, seed {seed}", flush=True)
  return _train(made, folder)


def latents(config, workdir, size: str) -> pathlib.Path:
  """Digits of one of the sizes as latents, made if they are missing."""
  vae, folder = workdir / "vae", workdir / "latents" / size
  if not _is_done(vae, config.vae.total_steps):
    _train(config.vae, vae)
  made = config.latents.copy_and_resolve_references()
  with made.unlocked():
    made.vae.workdir = str(vae)
    made.data.digits.canvas = config.sides[size]
    made.data.digits.num_frames = config.num_frames[size]
  folder.mkdir(parents=True, exist_ok=True)
  prepare(made, folder, task=0, num_tasks=1)
  return folder


def _is_done(folder, steps) -> bool:
  return checkpoint.whole_steps(folder / "checkpoints")[-1:] == [steps]


def _train(config, folder):
  folder.mkdir(parents=True, exist_ok=True)
  train(config, folder)
  return folder


def _asks(config, arm):
  is_images = arm.part == "images"
  return judge.ask(
    is_images,
    config.num_images if is_images else config.num_clips,
    config.sides[arm.size],
    config.num_frames.get(arm.size, 1),
  )


def _floors(config, workdir, arm, seed, known):
  """Records of real samples that are not known; pixels have one kind alone."""
  names = FLOORS[:1] if arm.size == "images" else FLOORS
  of = lambda name, figures: _record(arm.part, name, 0, NOTHING, figures)
  missing = [name for name in names if _name(of(name, {})) not in known]
  if missing:
    codec = codecs.load_codec(trained(config, workdir, arm, seed))
    found = _asks(config, arm).floors(codec)
    yield from (of(name, found[name]) for name in missing)


def _cost(config, arm, seed, asked) -> float:
  """What is left of an arm, in calls of the model on a sample's tokens."""
  width = arm.changes.get("model.width", 128) / 128
  is_images = arm.part == "images"
  tokens = config["images" if is_images else "clips"].data
  tokens = tokens.num_packs * tokens.pack.tokens
  samples = config.num_images if is_images else 5 * config.num_clips
  drawn = 16 * samples * sum(question.calls for question in asked)
  return width**2 * (3 * tokens * arm.steps + drawn)


def _name(row):
  fields = ("part", "arm", "seed", *Question._fields)
  return tuple(row[field] for field in fields)


def _record(part, name, seed, question, figures) -> dict:
  return {
    "part": part,
    "arm": name,
    "seed": seed,
    **question._asdict(),
    "figures": {k: v and float(f"{v:.4g}") for k, v in figures.items()},
  }
