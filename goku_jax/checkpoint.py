"""Checkpoints: named trees of arrays and the data position, whole or absent.

  <folder>/<step>/<tree>/...     Orbax: a flat dict, dotted path -> array
  <folder>/<step>/manifest.json  layout, step, position, arrays, files, versions

The manifest is the commit: Orbax finishes, then the digests of its files are
taken, then the manifest appears by an atomic rename. A step without a whole
manifest does not exist. Orbax alone restores a wrong array without a word
after one flipped byte; here every file is verified before it is read.

The arrays are saved under their dotted paths (`block.qkv.kernel`, `0.mu.bias`)
and the structure is the caller's at restore, so that a NamedTuple of an
optimizer needs no code from the checkpoint.

  python -m goku_jax.checkpoint list|verify|show DIR [--step=N]

DIR is a run or its folder `checkpoints`. list compares sizes; verify reads
every byte, names the files that differ, and ends with 1 where there are any;
show prints the arrays of a step.
"""

import argparse
import concurrent.futures
import contextlib
import importlib.metadata
import json
import logging
import pathlib
import shutil
import signal
import sys

import jax
import orbax.checkpoint as ocp

from goku_jax import __version__, manifest
from goku_jax.files import sync
from goku_jax.trees import check_arrays, describe, flatten, read_tree
from goku_jax.typing import UserError

LAYOUT = 1


class Checkpointer:
  """Saves steps in the background; a failed save raises at the next call.

  A context manager, which waits for the last save on every way out.
  """

  def __init__(self, folder, *, keep: int = 3):
    if keep < 1:
      raise UserError(f"keep={keep}: set 1 or more checkpoints to stay")
    self.folder = pathlib.Path(folder).absolute()
    self.keep = keep
    # Made at once, so that a folder that cannot be made fails in `save`.
    options = ocp.options.AsyncOptions(create_directories_asynchronously=False)
    handler = ocp.CompositeCheckpointHandler()
    self._orbax = ocp.AsyncCheckpointer(handler, async_options=options)
    self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
    self._pending = None

  def save(self, step: int, trees: dict, position: dict):
    """Returns once the arrays are copied to the host; they may be donated then.

    Args:
      step: the name of the checkpoint; a step that is whole is never replaced.
      trees: trees of arrays by name; each can be restored alone.
      position: where the data stands, as JSON has it.
    """
    self.wait()
    flat = {name: flatten(tree, name) for name, tree in trees.items()}
    record = _make_record(step, flat, position)
    path = self.folder / str(step)
    arguments = {name: ocp.args.PyTreeSave(tree) for name, tree in flat.items()}
    # A copy asked for, whatever guard the training loop runs under.
    allow = jax.transfer_guard_device_to_host("allow")
    with _explain_failure(path), allow:
      if jax.process_index() == 0:
        self._make_way(path)
      # Starts with a barrier, so the other processes see the way made.
      self._orbax.save(path, args=ocp.args.Composite(**arguments))
    self._pending = self._thread.submit(self._commit, path, record)

  def wait(self):
    """Returns once the last save is whole; raises if it failed."""
    pending, self._pending = self._pending, None
    if pending is not None:
      pending.result()

  def close(self):
    """Waits for the last save and ends the threads."""
    try:
      self.wait()
    finally:
      self._thread.shutdown()
      self._orbax.close()

  def __enter__(self):
    return self

  def __exit__(self, kind, error, traceback):
    try:
      self.close()
    except Exception as failure:
      if error is None:
        raise
      logging.error("%s", failure)  # what ended the block goes on upwards

  def _make_way(self, path):
    """Removes what is left of an unfinished or damaged save of this step."""
    self.folder.mkdir(parents=True, exist_ok=True)
    for left in self.folder.glob(f"{path.name}.*"):
      shutil.rmtree(left)
    if path.exists():
      try:
        manifest.check(path, manifest.read(path)["files"])
      except manifest.BrokenError:
        _remove(path)
      else:
        raise ValueError("it is whole already, and never replaced")

  def _commit(self, path, record):
    """Waits for Orbax, then writes the manifest and removes old steps.

    A thread of ours, because `AsyncOptions.post_finalization_callback` runs
    before Orbax renames its temporary folder: there a manifest could be seen
    in a folder that Orbax has not finished.
    """
    with _explain_failure(path):
      self._orbax.wait_until_finished()
      if jax.process_index() == 0:
        manifest.write(path, record)
        sync(self.folder)
        self._remove_old(int(path.name))

  def _remove_old(self, saved):
    whole = whole_steps(self.folder)
    kept = {saved, *whole[-self.keep :]}
    for path in self.folder.iterdir():
      step = _step_of(path)
      if step is None or path.name in map(str, kept):
        continue
      # A damaged step stays for inspection while it is among the recent.
      has_manifest = (path / manifest.NAME).exists()
      if step in whole or step < min(kept) or not has_manifest:
        _remove(path)


def whole_steps(folder) -> list[int]:
  """Steps that are committed, oldest first, by manifests and file sizes."""
  steps = []
  for step in _steps(folder):
    path = pathlib.Path(folder) / str(step)
    with contextlib.suppress(manifest.BrokenError):
      manifest.check(path, manifest.read(path)["files"], digests=False)
      steps.append(step)
  return steps


def restore(folder, abstract: dict, step: int | None = None):
  """`(step, trees, position)` of the newest whole step; None if there is none.

  Args:
    folder: where a `Checkpointer` saved.
    abstract: the wanted trees by name, a subset of those saved, their leaves
      with shape, dtype and, for arrays on devices, sharding; without one, a
      leaf comes as a numpy array. The sharding may differ from the saved one.
    step: this step and no other.

  Raises:
    UserError: `step` is not whole, all committed steps are damaged, or the
      trees saved are not those wanted.
  """
  found = _restore(folder, abstract, step)
  if found is None:
    return None
  record, trees = found
  return record["step"], trees, record["position"]


def restore_run(workdir, name: str, abstract, step: int | None = None):
  """`(step, tree, digest)` of a run's newest whole step, or of `step`.

  One tree, and the digest of the manifest, by which the checkpoint is known
  among those of all runs.

  Raises:
    UserError: as `restore`, or the run has no whole step.
  """
  folder = pathlib.Path(workdir) / "checkpoints"
  found = _restore(folder, {name: abstract}, step)
  if found is None:
    raise UserError(f"{folder} has no whole checkpoint: train first")
  record, trees = found
  return record["step"], trees[name], record["digest"]


def _restore(folder, abstract, step):
  """The record and the trees of the step to restore, or None."""
  found = _find_whole(pathlib.Path(folder).absolute(), abstract, step)
  if found is None:
    return None
  path, record = found
  for name, tree in abstract.items():  # all that is wrong, before any reading
    wanted = flatten(tree, name, is_abstract=True)
    check_arrays(path, name, record["trees"], wanted)
  try:
    trees = {name: read_tree(path, name, abstract[name]) for name in abstract}
  except FileNotFoundError as error:
    raise UserError(
      f"{path} was removed while it was read: keep more, or take a newer step"
    ) from error
  return record, trees


def _make_record(step, flat, position):
  if not isinstance(step, int) or step < 0:
    raise ValueError(f"step is {step!r}, not a whole number from 0")
  if json.loads(json.dumps(position, allow_nan=False)) != position:
    raise ValueError(f"the position {position!r} is changed by JSON")
  return {
    "layout": LAYOUT,
    "step": step,
    "position": position,
    "versions": {
      "goku_jax": __version__,
      "jax": jax.__version__,
      "orbax": importlib.metadata.version("orbax-checkpoint"),
    },
    "trees": {
      name: {path: describe(leaf) for path, leaf in tree.items()}
      for name, tree in flat.items()
    },
  }


@contextlib.contextmanager
def _explain_failure(path):
  try:
    yield
  except Exception as error:
    message = f"the checkpoint {path} could not be saved: {error}"
    raise RuntimeError(message) from error


def _step_of(path):
  """The step that a name stands for, `7` and `7.<temporary>` alike, or None."""
  number = path.name.split(".")[0]
  return int(number) if number.isdecimal() else None


def _steps(folder):
  """Steps that have a folder, whole or not, even a temporary one."""
  folder = pathlib.Path(folder)
  paths = folder.iterdir() if folder.is_dir() else ()
  return sorted({_step_of(path) for path in paths} - {None})


def _remove(path):
  """Removes a step; without its manifest it no longer exists for a reader."""
  (path / manifest.NAME).unlink(missing_ok=True)
  shutil.rmtree(path)


def _read_whole(path, names):
  """Record of a step of which the trees `names` are whole."""
  record = manifest.read(path)
  if record["layout"] > LAYOUT:
    raise UserError(
      f"{path} has the layout {record['layout']}; this goku_jax reads "
      f"{LAYOUT} and older: use a newer one"
    )
  files = record["files"]
  # Beside those of the trees, what Orbax says of them together.
  needed = [f for f in files if "/" not in f or f.split("/")[0] in names]
  manifest.check(path, {file: files[file] for file in needed})
  return record


def _find_whole(folder, names, step):
  """Path and record of the step to restore; None if nothing was committed."""
  broken = {}
  for number in reversed(_steps(folder)) if step is None else [step]:
    path = folder / str(number)
    try:
      record = _read_whole(path, names)
    except manifest.BrokenError as error:
      broken[number] = f"checkpoint {path} is not whole ({error})"
      continue
    for message in broken.values():
      logging.warning("%s: step %d is used instead", message, number)
    return path, record
  for number, message in broken.items():
    if step is not None or (folder / str(number) / manifest.NAME).exists():
      others = [n for n in whole_steps(folder) if n not in broken]
      raise UserError(f"{message}; whole steps: {others or 'none'}")
    logging.warning("%s: it was never finished", message)
  return None


def main(arguments: list[str]) -> int:
  """Runs a command of the module's docstring; returns the exit status."""
  summary, usage = __doc__.split("\n", 1)
  parser = argparse.ArgumentParser(
    "python -m goku_jax.checkpoint",
    description=summary,
    epilog=usage,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("command", choices=["list", "verify", "show"])
  parser.add_argument("folder", type=pathlib.Path, metavar="DIR")
  parser.add_argument("--step", type=int, help="this one alone")
  given = parser.parse_args(arguments)
  inside = given.folder / "checkpoints"
  folder = inside if inside.is_dir() else given.folder
  steps = _steps(folder) if given.step is None else [given.step]
  if not steps:
    print(f"{folder} has no checkpoint", file=sys.stderr)
    return 2
  if given.command == "show":
    return _print_step(folder, steps)
  told = [_describe(folder / str(s), given.command == "verify") for s in steps]
  for step, (lines, _) in zip(steps, told, strict=True):
    print("\n".join(f"step {step}: {line}" for line in lines))
  return int(not all(whole for _, whole in told))


def _describe(path, digests) -> tuple[list[str], bool]:
  """Lines on a step, and whether it is whole."""
  try:
    record = manifest.read(path)
  except manifest.BrokenError as error:
    return [f"not whole ({error})"], False
  files = record["files"]
  if found := manifest.problems(path, files, digests=digests):
    return [f"not whole ({line})" for line in found], False
  size = sum(entry["size"] for entry in files.values())
  counts = [f"{len(tree)} of {name}" for name, tree in record["trees"].items()]
  how = "every byte" if digests else "by sizes"
  arrays = f"arrays: {', '.join(counts)}"
  return [f"whole, {how}; {size / 1e6:,.1f} MB; {arrays}"], True


def _print_step(folder, steps) -> int:
  """Prints what the newest of the steps that has a manifest holds."""
  for step in reversed(steps):
    with contextlib.suppress(manifest.BrokenError):
      record = manifest.read(folder / str(step))
      print(f"step {step}, position {json.dumps(record['position'])}")
      print(", ".join(f"{k} {v}" for k, v in record["versions"].items()))
      for name, tree in record["trees"].items():
        for path, leaf in tree.items():
          print(f"{name}.{path}  {leaf['dtype']} {leaf['shape']}")
      return 0
  print(f"{folder}: step {steps[-1]} has no whole manifest", file=sys.stderr)
  return 2


if __name__ == "__main__":
  signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `show DIR | head`
  sys.exit(main(sys.argv[1:]))
