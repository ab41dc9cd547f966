"""What several processes tell each other besides what the devices exchange.

Through JAX's coordination service, which the first process has: so it works in
any thread, at any time, and of one process there is nothing to tell.
"""

import json

import jax
import numpy as np

# JAX shows its coordination service to nobody.
from jax._src import distributed
from jax.experimental import multihost_utils

MOST_BYTES = 1024  # of a text that is exchanged
PATIENCE_MS = 24 * 3600 * 1000  # what hangs is the watchdog's


def client():
  """The service, or None where there is one process."""
  return distributed.global_state.client


def exchange(text: str) -> list[str]:
  """What each process tells, by index; a collective call."""
  if jax.process_count() == 1:
    return [text]
  data = np.zeros(MOST_BYTES, np.uint8)
  encoded = np.frombuffer(text.encode()[:MOST_BYTES], np.uint8)
  data[: len(encoded)] = encoded
  rows = np.asarray(multihost_utils.process_allgather(data))
  return [row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in rows]


def share(error: str | None) -> str | None:
  """The first error of any process, on all of them; a collective call."""
  return next(filter(None, exchange(error or "")), None)


def by_the_first(key: str, act):
  """Lets the first process act; on all it raises where that did.

  Args:
    key: that no other call has.
    act: a function.

  Raises:
    RuntimeError: in the others, with what the first one says.
  """
  if jax.process_count() == 1:
    act()
  elif jax.process_index() == 0:
    told = "the first process ended"
    try:
      act()
      told = ""
    except Exception as error:
      told = str(error)
      raise
    finally:
      client().key_value_set(key, json.dumps(told))
  elif told := json.loads(client().blocking_key_value_get(key, PATIENCE_MS)):
    raise RuntimeError(told)


def spread(key: str, list_items, act) -> dict | None:
  """What all processes make of the items, a share each; None but on the first.

  Args:
    key: that no other call has.
    list_items: gives the items, as JSON has them; the first calls it.
    act: of a share of the items, returns a dict, as JSON has it.

  Raises:
    RuntimeError: in the first, with what another one met, which goes on.
  """
  count, index = jax.process_count(), jax.process_index()
  if count == 1:
    return act(list_items())
  told = lambda name: json.loads(
    client().blocking_key_value_get(f"{key}/{name}", PATIENCE_MS)
  )
  tell = lambda name, x: client().key_value_set(f"{key}/{name}", json.dumps(x))
  if index:
    try:
      found = act(told("items")[index::count])
      tell(index, {"found": found})
    except Exception as error:
      tell(index, {"error": f"process {index}: {error}"})
    return None
  items = list_items()
  tell("items", items)
  found = act(items[::count])
  for other in map(told, range(1, count)):
    if "error" in other:
      raise RuntimeError(other["error"])
    found |= other["found"]
  client().key_value_delete(key)  # the service would keep it
  return found


def meet(key: str):
  """Returns in every process once all have called it with a key of its own."""
  if jax.process_count() > 1:
    client().wait_at_barrier(key, PATIENCE_MS)
