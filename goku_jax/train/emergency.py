"""Copies of the state on the hosts' own disks, for a start after a crash.

Orbax's emergency manager (experimental, so imported only where it is used)
saves them, and at a start reads the newest on a replica that still has it and
broadcasts it to the others. Replica 0 keeps none, as Orbax has it: it would
save the persistent checkpoints, which stay with `checkpoint.Checkpointer`.

A copy is held to what a checkpoint is: it is there once its manifest is, its
files are verified before they are read and its arrays after. One that is not
whole, or of another run or mesh, is removed with a warning.
"""

import contextlib
import logging
import pathlib
import shutil
import uuid
from collections.abc import Callable

import jax
import orbax.checkpoint as ocp

from goku_jax import checkpoint, checksums, files, manifest
from goku_jax.trees import check_arrays, flatten
from goku_jax.typing import UserError

INSIDE = "goku_emergency"  # of the folder: nothing else is ever removed


class Emergency(checkpoint.Background):
  """Saves local copies in the background, if any; a context manager.

  Args:
    mesh: whose replicas lie on processes of their own.
    workdir: of the run, where an id tells it from others.
    folder: on the own disk of each host, or None: no copies.
    every_steps: of training, after which a copy is made.
    watch: context in which a save is finished, by its name.

  Raises:
    UserError: the mesh cannot have copies, or another job has the folder.
  """

  def __init__(
    self,
    mesh,
    workdir,
    *,
    folder: str | None = None,
    every_steps: int = 0,
    watch: Callable = contextlib.nullcontext,
  ):
    super().__init__(orbax=None, watch=watch)
    self.mesh, self.workdir, self.every = mesh, workdir, every_steps
    self._lock = contextlib.ExitStack()
    if bool(folder) != (every_steps > 0):
      raise UserError(
        f"emergency.folder={folder} and emergency.every_steps={every_steps}:"
        " set both, or neither"
      )
    if folder:
      _check(mesh)
      self.folder = pathlib.Path(folder).absolute() / INSIDE
      files.make_folder(self.folder, "config.emergency.folder")
      taken = f"another process saves to {folder}: give each one its own"
      self._lock.enter_context(files.locked(self.folder / ".lock", taken))

  def is_due(self, step: int) -> bool:
    """Whether the state before this step is to be copied."""
    return self.every > 0 and step % self.every == 0

  def restore(self, abstract: dict):
    """`(step, trees, position)` of the newest copy that is used, or None.

    Every process calls it, before the first save. None where a checkpoint of
    the run is as new, or no replica has a whole copy.

    Args:
      abstract: the trees that are saved, by name: shapes with shardings.
    """
    if not self.every:
      return None
    # Orbax makes arrays of this process, which a mesh in use would spread.
    with jax.set_mesh(None):
      return self._restore(abstract)

  def _restore(self, abstract):
    known = self._exchange(
      newest=max(
        checkpoint.whole_steps(checkpoint.folder_of(self.workdir)), default=-1
      ),
      run=_identify(self.workdir) if jax.process_index() == 0 else None,
    )[0]  # of all processes, so that they agree
    self.origin = {
      "run": known["run"],
      "mesh": dict(self.mesh.shape),
      "processes": jax.process_count(),
    }
    wanted = {
      name: flatten(tree, name, is_abstract=True)
      for name, tree in abstract.items()
    }
    self._remove_others()
    if self._orbax is None:
      self._orbax = _make_manager(self.folder, self.mesh, wanted)
    self._orbax.reload()
    step = max(self._orbax.all_steps(), default=-1)
    found = self._read(step, wanted) if step > known["newest"] else None
    if found is None:
      return None
    flat, position = found
    print(f"step {step} is read from copies on the hosts", flush=True)
    trees = {
      name: jax.tree.unflatten(
        jax.tree.structure(tree), [flat[name][key] for key in wanted[name]]
      )
      for name, tree in abstract.items()
    }
    return step, trees, position

  def _read(self, step, wanted):
    """Its trees and position, or None where an array is not as it was saved."""
    path = self.folder / str(step)
    own = manifest.read(path) if path.exists() else None
    record = next(t["own"] for t in self._exchange(own=own) if t["own"])
    for name, tree in wanted.items():
      check_arrays(path, name, record["trees"], tree)
    flat = jax.tree.map(_place, self._orbax.restore(step).state, wanted)
    wrong = [
      f"{name}.{key}"
      for name, tree in flat.items()
      for key, value in checksums.fetch(_start(tree)).items()
      if value != record["trees"][name][key]["checksum"]
    ]
    told = self._exchange(wrong=wrong[:1])
    wrong = [name for each in told for name in each["wrong"]]
    if not wrong:
      return flat, record["position"]
    _remove(path, f"{wrong[0]} differs from its checksum")
    self._orbax.reload()
    return None

  def save(self, step: int, trees: dict, position: dict):
    """Returns once the arrays are copied, as `Checkpointer.save` does."""
    self.wait()
    flat = {name: flatten(tree, name) for name, tree in trees.items()}
    record = checkpoint.make_record(step, flat, position)
    with jax.transfer_guard_device_to_host("allow"), jax.set_mesh(None):
      sums = {name: _start(tree) for name, tree in flat.items()}
      arguments = ocp.args.Composite(state=ocp.args.PyTreeSave(flat))
      self._orbax.save(step, args=arguments)
    self._submit(self._commit, step, record | {"origin": self.origin}, sums)

  def _commit(self, step, record, sums):
    with self.watch("commit"):
      self._orbax.wait_until_finished()
      path = self.folder / str(step)
      if path.exists():  # not in replica 0
        checkpoint.add_checksums(record, sums)
        manifest.write(path, record)

  def _remove_others(self):
    """Leaves the whole copies of this run on this mesh alone in the folder."""
    for path in self.folder.iterdir():
      if not path.name.isdecimal():
        continue
      try:
        record = manifest.read(path)
        manifest.check(path, record["files"])
        if record["origin"] != self.origin:
          raise manifest.BrokenError("it is of another run or mesh")
      except manifest.BrokenError as error:
        _remove(path, error)

  def remove(self):
    """Removes the copies of a run that is done."""
    self.wait()
    if self.every:
      for path in self.folder.iterdir():
        if path.name.isdecimal():
          shutil.rmtree(path)

  def _exchange(self, **told) -> list[dict]:
    """What each process tells, by its index."""
    from orbax.checkpoint.experimental.emergency import path

    return path.sync_global_data(told)

  def close(self):
    """Waits for the last save and gives the folder free."""
    with self._lock:
      super().close()


def _check(mesh):
  """Refuses a mesh of which Orbax cannot keep a replica apart."""
  owners = [{d.process_index for d in part.flat} for part in mesh.devices]
  if len(owners) < 2 or sum(map(len, owners)) > len(set.union(*owners)):
    raise UserError(
      f"emergency.folder: mesh.replica={len(owners)} over"
      f" {jax.process_count()} processes: set 2 or more, each over processes of"
      " its own"
    )


def _remove(path, why):
  logging.warning("the local copy %s is removed: %s", path, why)
  shutil.rmtree(path, ignore_errors=True)  # replica 0 has none


def _identify(workdir) -> str:
  """The id of a run, which goes with its folder."""
  path = pathlib.Path(workdir) / "emergency_id"
  if not path.exists():
    files.write_whole(path, uuid.uuid4().hex.encode())
  return path.read_text()


def _make_manager(folder, mesh, abstract):
  from orbax.checkpoint._src.multihost import multihost  # not exported
  from orbax.checkpoint.experimental.emergency import checkpoint_manager as ecm

  multihost.initialize_distributed_to_device_ids()
  persistent = folder / "persistent"  # must be there, and stays empty
  persistent.mkdir(exist_ok=True)
  options = ecm.CheckpointManagerOptions(
    local=ecm.LocalCheckpointOptions(save_interval_steps=1),
    persistent=ecm.PersistentCheckpointOptions(
      should_save_fn=lambda step, latest: False
    ),
    replica_axis_index=0,  # the first of the axes of parallel.mesh
  )
  return ecm.CheckpointManager(
    folder, persistent, mesh, abstract, options=options
  )


def _place(x, wanted):
  """As the step takes it; Orbax names the same devices another way."""
  return jax.device_put(x.astype(wanted.dtype), wanted.sharding)


def _start(tree):
  """Checksums; Orbax broadcasts by a sum, in which zeros lose their sign."""
  return checksums.start(tree, signed_zeros=False)
