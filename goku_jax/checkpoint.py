"""Checkpoints: named trees of arrays and the data position, whole or absent.

  <folder>/<step>/<tree>/...     Orbax: a flat dict, dotted path -> array
  <folder>/<step>/manifest.json  layout, step, position, config, versions, and
                                 what is inside: arrays and files

The manifest is the commit: Orbax finishes, then the digests of its files are
taken, then the manifest appears, by an atomic rename or, in the cloud
(gs://BUCKET/FOLDER, see store.py), by one PUT. A step without a whole
manifest does not exist. Orbax alone restores a wrong array without a word
after one flipped byte; here every file is verified before it is read, and every
array after: its checksum was taken on the devices, before it was copied.

The arrays are saved under their dotted paths (`block.qkv.kernel`, `0.mu.bias`)
and the structure is the caller's at restore, so that a NamedTuple of an
optimizer needs no code from the checkpoint.

  python -m goku_jax.checkpoint list|verify|show DIR [--step=N]

DIR is a run or a folder of checkpoints. list compares sizes; verify reads
every byte, names the files that differ, and ends with 1 where there are any;
show prints the arrays of a step.
"""

import argparse
import concurrent.futures
import contextlib
import functools
import importlib.metadata
import json
import logging
import os
import signal
import sys
from collections.abc import Callable

import jax
import orbax.checkpoint as ocp

from goku_jax import __version__, checksums, coordination, manifest, store
from goku_jax.config import load_config
from goku_jax.files import plain
from goku_jax.trees import (
  check_arrays,
  check_tree,
  describe,
  flatten,
  read_tree,
)
from goku_jax.typing import UserError

LAYOUT = 2
VERIFY = ("full", "sizes")
FILE_BYTES = 2**27  # of a file, about: many are digested side by side


class Background:
  """Finishes one save at a time in a thread; a failure raises at the next call.

  A context manager, which waits for the last save on every way out.

  Args:
    orbax: what is closed at the end.
    watch: context in which a save is finished, by its name.
  """

  def __init__(self, orbax, watch: Callable = contextlib.nullcontext):
    self._orbax, self.watch = orbax, watch
    self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
    self._pending = None

  def _submit(self, finish, *arguments):
    self._pending = self._thread.submit(finish, *arguments)

  def check(self):
    """Raises if the last save has failed already; waits for nothing."""
    if self._pending is not None and self._pending.done():
      self.wait()

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
      if self._orbax is not None:
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


class Checkpointer(Background):
  """Saves steps in the background.

  What a run has passed over, as it went on from the step `went_on_from`, it
  replaces; no other step that is whole.

  Args:
    folder: of the steps, see `store.open_folder`.
    keep: how many of the newest steps stay.
    keep_every: steps whose number it divides stay as well; 0: none.
    best: of the steps that are there, tells one more that stays, or None.
    config: of the run, for the manifest.
    watch: context in which a save is finished, by its name.
    save_gb: GB (1e9 bytes) of each tree that are written at once, at most;
      None: Orbax's limit.
  """

  def __init__(
    self,
    folder,
    *,
    keep: int = 3,
    keep_every: int = 0,
    best: Callable[[list[int]], int | None] = lambda steps: None,
    config: dict | None = None,
    watch: Callable = contextlib.nullcontext,
    save_gb: float | None = None,
  ):
    if keep < 1:
      raise UserError(f"keep={keep}: set 1 or more checkpoints to stay")
    if keep_every < 0:
      raise UserError(f"keep_every={keep_every}: set 0 (none) or more steps")
    self.folder = store.open_folder(folder)
    self.keep, self.keep_every, self.best = keep, keep_every, best
    self.went_on_from, self._saves = None, 0
    self.config = plain(config or {})
    super().__init__(open_orbax(save_gb), watch)

  def save(self, step: int, trees: dict, position: dict):
    """Returns once the arrays are copied to the host; they may be donated then.

    Args:
      step: the name of the checkpoint; a step that is whole is never replaced.
      trees: trees of arrays by name; each can be restored alone.
      position: where the data stands, as JSON has it.
    """
    self.wait()
    flat = {name: flatten(tree, name) for name, tree in trees.items()}
    record = make_record(step, flat, position) | {"config": self.config}
    path = self.folder / str(step)
    # A copy asked for, whatever guard the training loop runs under.
    allow = jax.transfer_guard_device_to_host("allow")
    with _explain_failure(path), allow:
      sums = {name: checksums.start(tree) for name, tree in flat.items()}
      if jax.process_index() == 0:
        self._make_way(path)
      # Starts with a barrier, so the other processes see the way made.
      self._orbax.save(path, args=orbax_arguments(flat))
    self._submit(self._commit, path, record, sums)

  def _make_way(self, path):
    """Removes what is left of an unfinished or damaged save of this step."""
    if not store.is_remote(path):
      self.folder.mkdir(parents=True, exist_ok=True)
    for name in store.names(self.folder):
      if name.startswith(f"{path.name}."):
        (self.folder / name).rmtree()
    if path.exists():
      try:
        manifest.check(path, manifest.read(path)["files"])
        is_whole = True
      except manifest.BrokenError:
        is_whole = False
      since = self.went_on_from
      if is_whole and (since is None or int(path.name) <= since):
        raise ValueError("it is whole already, and never replaced")
      _remove(path)

  def _commit(self, path, record, sums):
    """Waits for Orbax, then writes the manifest and removes old steps.

    A thread of ours, because `AsyncOptions.post_finalization_callback` runs
    before Orbax renames its temporary folder: there a manifest could be seen
    in a folder that Orbax has not finished.
    """
    with _explain_failure(path), self.watch("commit"):
      self._orbax.wait_until_finished()
      self._saves += 1
      key = f"goku_jax/commit/{path}/{self._saves}"
      describe = lambda: coordination.spread(
        f"{key}/files",
        lambda: list(store.sizes(path)),
        lambda names: manifest.describe_files(path, names),
      )
      if jax.process_index():  # its share, before it waits for the first
        describe()
      # A save that one process takes for done, all restore from.
      coordination.by_the_first(
        key, lambda: self._finish(path, record, describe(), sums)
      )

  def _finish(self, path, record, files, sums):
    add_checksums(record, sums)
    manifest.write(path, record, files)
    store.settle(self.folder)
    self._remove_old(int(path.name))

  def _remove_old(self, saved):
    whole = whole_steps(self.folder)
    recent = whole[-self.keep :]
    kept = {saved, self.best(whole), *recent}
    if self.keep_every:
      kept |= {step for step in whole if step % self.keep_every == 0}
    for name in store.names(self.folder):
      step, path = _step_of(name), self.folder / name
      if step is None or name in map(str, kept):
        continue
      # A damaged step stays for inspection while it is among the recent.
      has_manifest = (path / manifest.NAME).exists()
      if step in whole or step < min(saved, *recent) or not has_manifest:
        _remove(path)


def open_orbax(save_gb: float | None = None) -> ocp.AsyncCheckpointer:
  """Orbax's own part of a `Checkpointer`, which writes trees of arrays."""
  # Made at once, so that a folder that cannot be made fails in `save`.
  options = ocp.options.AsyncOptions(create_directories_asynchronously=False)
  registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
  # Weights do not compress (float32 to 93 %), and with zstd a save takes three
  # to four times, a restore twice as long.
  handler = ocp.PyTreeCheckpointHandler(
    save_concurrent_gb=save_gb, use_compression=False
  )
  registry.add(None, ocp.args.PyTreeSave, handler)
  handler = ocp.CompositeCheckpointHandler(handler_registry=registry)
  return ocp.AsyncCheckpointer(handler, async_options=options)


def orbax_arguments(flat: dict) -> ocp.args.Composite:
  """What Orbax saves: flat trees of arrays by name."""
  save = functools.partial(
    ocp.args.PyTreeSave, ocdbt_target_data_file_size=FILE_BYTES
  )
  return ocp.args.Composite(**{name: save(tree) for name, tree in flat.items()})


def whole_steps(folder) -> list[int]:
  """Steps that are committed, oldest first, by manifests and file sizes."""
  steps, folder = [], store.open_folder(folder)
  for step in _steps(folder):
    path = folder / str(step)
    with contextlib.suppress(manifest.BrokenError):
      manifest.check(path, manifest.read(path)["files"], digests=False)
      steps.append(step)
  return steps


def restore(
  folder,
  abstract: dict,
  step: int | None = None,
  *,
  verify: str = "full",
  fall_back: bool = True,
  restore_gb: float | None = None,
  before: int | None = None,
):
  """`(step, trees, position)` of the newest whole step; None if there is none.

  Every process calls it; each reads its share of the bytes to be verified.

  Args:
    folder: where a `Checkpointer` saved.
    abstract: the wanted trees by name, a subset of those saved, their leaves
      with shape, dtype and, for arrays on devices, sharding; without one, a
      leaf comes as a numpy array. The sharding may differ from the saved one.
    step: this step and no other.
    verify: "full", the digests of files and the checksums of arrays; or
      "sizes", those of the files.
    fall_back: whether a damaged newest step is passed over with a warning.
    restore_gb: see `trees.read_tree`.
    before: a step; those before it are preferred to newer ones.

  Raises:
    UserError: `step`, or without `fall_back` the newest, is not whole; all
      committed steps are damaged; or the trees saved are not those wanted.
  """
  found = _restore(
    folder, abstract, step, verify, fall_back, restore_gb, before
  )
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
  config = load_config(workdir)
  folder = folder_of(workdir, config)
  restore_gb = config.get("checkpoint", {}).get("restore_gb")
  found = _restore(folder, {name: abstract}, step, restore_gb=restore_gb)
  if found is None:
    raise UserError(f"{folder} has no whole checkpoint: train first")
  record, trees = found
  return record["step"], trees[name], record["digest"]


def saved_arrays(workdir, name: str, step: int | None = None):
  """`(step, {path: {"shape", "dtype"}})` of a tree of a run's checkpoint.

  Args:
    workdir: of the run.
    name: of the tree.
    step: the newest whole one by default.

  Raises:
    UserError: there is no such step or tree.
  """
  folder = folder_of(workdir, load_config(workdir))
  steps = whole_steps(folder) if step is None else [step]
  if not steps:
    raise UserError(f"{folder} has no whole checkpoint: train first")
  path = folder / str(steps[-1])
  try:
    trees = manifest.read(path)["trees"]
  except manifest.BrokenError as error:
    raise UserError(f"checkpoint {path}: {error}") from error
  check_tree(path, name, trees)
  fields = ("shape", "dtype")
  arrays = trees[name].items()
  return steps[-1], {k: {f: about[f] for f in fields} for k, about in arrays}


def digest_of(workdir, step: int) -> str:
  """The digest of a run's checkpoint, as `restore_run` gives it."""
  path = folder_of(workdir, load_config(workdir)) / str(step)
  try:
    return manifest.read(path)["digest"]
  except manifest.BrokenError as error:
    raise UserError(f"checkpoint {path}: {error}") from error


def folder_of(workdir, config=None):
  """Where a run keeps its checkpoints, by its config: that in the workdir."""
  if config is None:
    saved = os.path.exists(os.path.join(workdir, "config.json"))
    config = load_config(workdir) if saved else {}
  named = config.get("checkpoint", {}).get("folder")
  return store.open_folder(named or os.path.join(workdir, "checkpoints"))


def _restore(
  folder,
  abstract,
  step,
  verify="full",
  fall_back=True,
  restore_gb=None,
  before=None,
):
  """The record and the trees of the step to restore, or None."""
  if verify not in VERIFY:
    raise UserError(f"verify={verify!r} is none of {', '.join(VERIFY)}")
  folder = store.open_folder(folder)
  passed, damaged = [], None
  for number in _candidates(folder, before) if step is None else [step]:
    path = folder / str(number)
    was_finished = (path / manifest.NAME).exists()
    try:
      record, trees = _read_step(path, abstract, verify == "full", restore_gb)
    except manifest.BrokenError as error:
      message = f"checkpoint {path} is not whole ({error})"
      passed.append((number, message))
      # Else it was committed, or removed, while it was looked at.
      is_finished = was_finished and (path / manifest.NAME).exists()
      if step is not None or is_finished:
        damaged = damaged or message
      if damaged and (step is not None or not fall_back):
        break
    else:
      for _, message in passed:
        logging.warning("%s: step %d is used instead", message, number)
      return record, trees
  if damaged:
    others = set(whole_steps(folder)) - {number for number, _ in passed}
    raise UserError(f"{damaged}; whole steps: {sorted(others) or 'none'}")
  for _, message in passed:
    logging.warning("%s: it was never finished", message)
  return None


def _candidates(folder, before):
  """Steps to try, newest first, the same on all processes."""
  steps = _steps(folder)[::-1]
  if before is not None and any(step < before for step in steps):
    steps = [step for step in steps if step < before]
  return json.loads(coordination.exchange(json.dumps(steps[:100]))[0])


def _read_step(path, abstract, in_full, restore_gb):
  """The record of a step, and its trees that are wanted."""
  record = error = None
  try:
    record = _check_step(path, abstract, in_full)
  except (manifest.BrokenError, UserError) as found:
    error = found
  # No process reads alone what another one has refused.
  told = coordination.share(error and str(error))
  if error:
    raise error
  if told:
    raise manifest.BrokenError(told)
  trees = _read_trees(path, abstract, in_full, restore_gb)
  if in_full:
    for name, tree in trees.items():
      found = checksums.fetch(checksums.start(flatten(tree, name)))
      for key, value in found.items():
        if value != record["trees"][name][key]["checksum"]:
          raise manifest.BrokenError(f"{name}.{key} differs from its checksum")
  return record, trees


def _read_trees(path, abstract, in_full, restore_gb):
  """The trees as Orbax has them, in the structures wanted."""
  try:
    with store.reached(path):
      return {
        name: read_tree(path, name, tree, restore_gb)
        for name, tree in abstract.items()
      }
  except Exception as error:  # what is gone first shows in many ways
    if manifest.NAME not in store.names(path):
      raise UserError(
        f"{path} was removed while it was read: keep more, or take a newer step"
      ) from error
    if in_full or "DATA_LOSS" not in str(error):
      raise
    raise manifest.BrokenError(str(error).partition(" [")[0]) from error


def _check_step(path, abstract, in_full):
  """Its record, once all that this process can see of it is right.

  Sizes are for each to see; of the bytes, which are many, each reads a share.
  """
  record = manifest.read(path)
  if record["layout"] != LAYOUT:
    raise UserError(
      f"{path} has the layout {record['layout']}; this goku_jax reads {LAYOUT}:"
      " use the one that wrote it"
    )
  files = record["files"]
  # Beside those of the trees, what Orbax says of them together.
  needed = [f for f in files if "/" not in f or f.split("/")[0] in abstract]
  files = {name: files[name] for name in sorted(needed)}
  manifest.check(path, files, digests=False)
  if in_full:
    share = list(files)[jax.process_index() :: jax.process_count()]
    manifest.check(path, {name: files[name] for name in share})
  for name, tree in abstract.items():  # all that is wrong, before any reading
    wanted = flatten(tree, name, is_abstract=True)
    check_arrays(path, name, record["trees"], wanted)
  return record


def make_record(step: int, flat: dict, position: dict) -> dict:
  """What the manifest of a step says, but for checksums of its arrays."""
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


def add_checksums(record: dict, sums: dict):
  """Adds what `checksums.start` has begun, by tree, to a record."""
  for name, tree in sums.items():
    for key, value in checksums.fetch(tree).items():
      record["trees"][name][key]["checksum"] = value


@contextlib.contextmanager
def _explain_failure(path):
  try:
    yield
  except Exception as error:
    message = f"the checkpoint {path} could not be saved: {error}"
    raise RuntimeError(message) from error


def _step_of(name):
  """The step that a name stands for, `7` and `7.<temporary>` alike, or None."""
  number = name.split(".")[0]
  return int(number) if number.isdecimal() else None


def _steps(folder):
  """Steps that have a folder, whole or not, even a temporary one."""
  return sorted({_step_of(name) for name in store.names(folder)} - {None})


def _remove(path):
  """Removes a step; without its manifest it no longer exists for a reader."""
  (path / manifest.NAME).unlink(missing_ok=True)
  path.rmtree()


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
  parser.add_argument("folder", metavar="DIR")
  parser.add_argument("--step", type=int, help="this one alone")
  given = parser.parse_args(arguments)
  try:
    return _run(given)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2


def _run(given) -> int:
  folder = store.open_folder(given.folder)
  if not store.is_remote(folder):
    inside = folder_of(folder)
    if store.is_remote(inside) or inside.is_dir():
      folder = inside
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
    return [f"not whole ({line})" for line in found.values()], False
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
