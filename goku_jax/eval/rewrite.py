"""Prompts rewritten to the long captions that a model was trained on.

Goku's 0.76 on GenEval is with prompts that ChatGPT-4o made longer, 0.70 with
the benchmark's own (Table 5): a result names its rewriter, or has none.

A rewriter is a file of JSON lines, {"prompt": ..., "rewritten": ...}, or an
endpoint of the OpenAI kind, POST {base}/chat/completions. What an endpoint
answered is kept as such a file, so that nothing is asked twice.
"""

import concurrent.futures
import hashlib
import http.client
import json
import pathlib
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from typing import NamedTuple

from goku_jax import lines
from goku_jax.typing import UserError

INSTRUCTION = pathlib.Path(__file__).parent / "assets" / "rewrite.txt"
MAX_WAIT = 60.0  # seconds between two tries, at most
MAX_ANSWER = 2**20  # bytes
AGAIN = (408, 409, 425, 429)  # statuses that may pass, beside those of 500 on


class _Here(urllib.request.HTTPRedirectHandler):
  """Follows nobody elsewhere: urllib would take the key along."""

  def redirect_request(self, *_):
    return None  # so it is an error like others


OPENER = urllib.request.build_opener(_Here)


class Endpoint(NamedTuple):
  """Who is asked, and what for."""

  base: str  # with its version, as https://host/v1
  model: str
  instruction: str
  key: str | None = None  # bearer token; never written anywhere
  timeout: float = 120.0  # seconds of one try
  tries: int = 6
  wait: float = 1.0  # seconds before the second try; doubles from there

  def describe(self) -> dict:
    """What a result says of its rewriter."""
    return {
      "endpoint": self.base,
      "model": self.model,
      "instruction_sha256": _sha256(self.instruction.encode()),
    }


class _TryAgainError(Exception):
  """An answer that the next try may better: why, and seconds to wait."""

  def __init__(self, reason, wait=0.0):
    super().__init__(reason)
    self.wait = wait


def read_instruction(path=None) -> str:
  """The text that tells an endpoint how to rewrite; ours by default."""
  try:
    text = pathlib.Path(path or INSTRUCTION).read_bytes().decode().strip()
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"{path}: cannot read it ({error})") from error
  if not text:
    raise UserError(f"{path} is empty: say how to rewrite a prompt")
  return text


def from_file(prompts: Iterable[str], path) -> dict[str, str]:
  """Rewritten prompts by prompt, out of a file.

  Raises:
    UserError: one is missing or empty, or there are two of one prompt.
  """
  found = {}
  for row in lines.read(path):
    prompt, text = row.get("prompt"), row.get("rewritten")
    if not isinstance(prompt, str) or not isinstance(text, str):
      raise UserError(f"{path}: each line needs a prompt and its rewritten")
    if found.setdefault(prompt, text) != text:
      raise UserError(f"{path}: two lines rewrite {prompt[:60]!r}, differently")
  return _check(prompts, found, path)


def describe_file(path) -> dict:
  """What a result says of a file that rewrote its prompts."""
  path = pathlib.Path(path)
  return {"file": path.name, "sha256": _sha256(path.read_bytes())}


def from_endpoint(
  prompts: Iterable[str], endpoint: Endpoint, cache, *, threads: int = 8
) -> dict[str, str]:
  """Rewritten prompts by prompt, asked for where the cache has none.

  Args:
    prompts: each is asked for once.
    endpoint: who is asked.
    cache: path of a file of JSON lines, kept by model and instruction; one
      process writes it.
    threads: questions at a time.

  Raises:
    UserError: the endpoint cannot be asked, or still gives no text at the last
      try; what it has answered is in the cache.
  """
  if not endpoint.base.startswith(("http://", "https://")):
    raise UserError(f"{endpoint.base!r} is no address: http://host/v1")
  if "@" in endpoint.base:  # results name the address
    raise UserError("the endpoint's address holds a password: use the key")
  prompts = list(dict.fromkeys(prompts))
  found = _cached(cache, endpoint) if pathlib.Path(cache).exists() else {}
  left = [prompt for prompt in prompts if not found.get(prompt)]
  log, lock = lines.Log(cache), threading.Lock()

  def ask(prompt):
    text = _ask_often(endpoint, prompt)
    row = {"prompt": prompt, "rewritten": text, **endpoint.describe()}
    with lock:  # here, so that no answer is lost where another one fails
      log.append(row)
      found[prompt] = text

  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    asked = [pool.submit(ask, prompt) for prompt in left]
    try:
      for future in concurrent.futures.as_completed(asked):
        future.result()
    finally:
      pool.shutdown(cancel_futures=True)
  return _check(prompts, found, endpoint.base)


def _cached(path, endpoint) -> dict[str, str]:
  described = endpoint.describe().items()
  rows = (row for row in lines.read(path) if described <= row.items())
  return {row["prompt"]: row["rewritten"] for row in rows}


def _check(prompts, found, where) -> dict[str, str]:
  prompts = list(dict.fromkeys(prompts))
  bad = [prompt for prompt in prompts if not found.get(prompt, "").strip()]
  if bad:
    what = "empty" if bad[0] in found else "missing"
    raise UserError(
      f"{where}: {len(bad)} of {len(prompts)} prompts are not rewritten; that"
      f" of {bad[0][:60]!r} is {what}"
    )
  return {prompt: found[prompt] for prompt in prompts}


def _ask_often(endpoint, prompt) -> str:
  for i in range(endpoint.tries):
    try:
      return _ask(endpoint, prompt)
    except _TryAgainError as error:
      reason, wait = error, max(error.wait, endpoint.wait * 2**i)
    if i + 1 < endpoint.tries:
      time.sleep(min(wait, MAX_WAIT))
  raise UserError(
    f"{endpoint.base}: no rewriting of {prompt[:60]!r} in"
    f" {endpoint.tries} tries ({reason}); what was answered is kept, run again"
  )


def _ask(endpoint, prompt) -> str:
  """The text of one answer, as one line."""
  system = {"role": "system", "content": endpoint.instruction}
  user = {"role": "user", "content": prompt}
  body = {"model": endpoint.model, "messages": [system, user]}
  headers = {"Content-Type": "application/json"}
  if endpoint.key:
    headers["Authorization"] = f"Bearer {endpoint.key}"
  url = f"{endpoint.base.rstrip('/')}/chat/completions"
  request = urllib.request.Request(url, json.dumps(body).encode(), headers)
  try:
    with OPENER.open(request, timeout=endpoint.timeout) as answer:
      choice = json.loads(answer.read(MAX_ANSWER))["choices"][0]
      text = " ".join((choice["message"]["content"] or "").split())
  except urllib.error.HTTPError as error:
    with error:
      _refuse(endpoint, error)
  except (OSError, http.client.HTTPException) as error:
    reason = getattr(error, "reason", None) or error
    raise _TryAgainError(str(reason)) from error
  except (ValueError, LookupError, TypeError, AttributeError) as error:
    raise _TryAgainError("an answer of another form") from error
  if not text:
    raise _TryAgainError("an empty answer")
  if choice.get("finish_reason") == "length":
    raise _TryAgainError("an answer cut at its longest")
  return text


def _refuse(endpoint, error):
  """Raises what an HTTP status means for the next try."""
  said = error.read(300).decode(errors="replace")
  reason = f"HTTP {error.code} {' '.join(said.split())}".strip()
  if error.code < 500 and error.code not in AGAIN:
    raise UserError(
      f"{endpoint.base} refuses: {reason}; check the address, the model and the"
      " key"
    ) from error
  after = error.headers.get("Retry-After", "")
  raise _TryAgainError(reason, float(after) if after.isdigit() else 0.0)


def _sha256(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()
