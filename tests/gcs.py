"""Google Cloud Storage on this machine, as tests and their children reach it.

  python tests/gcs.py PORT FOLDER

runs gcp-storage-emulator in memory, with one bucket, and adds what it lacks of
the real store: conditions on generations, and refusal. While FOLDER holds a
file `refused`, every request is answered by its text, a status and a message.
"""

import contextlib
import pathlib
import random
import socket
import subprocess
import sys
import time
from http import HTTPStatus

BUCKET = "bucket"


def environment(port) -> dict:
  """Variables by which gcsfs and TensorStore reach the emulator.

  TensorStore reads them once in a process.
  """
  url = f"http://127.0.0.1:{port}"
  return {
    "STORAGE_EMULATOR_HOST": url,
    "TENSORSTORE_GCS_HTTP_URL": url,
    "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
    # What gcsfs asks first by default goes by gRPC, past the emulator.
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
  }


@contextlib.contextmanager
def serve(folder):
  """The emulator's process, with its `port`; it ends with the block."""
  port = _free_port()
  command = [sys.executable, __file__, str(port), str(folder)]
  with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
    try:
      _wait_for(port, process)
      process.port = port
      yield process
    finally:
      process.kill()


def _free_port():
  for port in random.sample(range(20000, 30000), 100):  # as tests/conftest.py
    with contextlib.suppress(OSError), socket.create_server(("", port)):
      return port
  raise OSError("no free port")


@contextlib.contextmanager
def refusing(folder, status: int, message: str):
  """Within, the emulator on `folder` refuses all requests."""
  path = folder / "refused"
  path.with_suffix(".part").write_text(f"{status} {message}")
  path.with_suffix(".part").rename(path)
  try:
    yield
  finally:
    path.unlink()


def _wait_for(port, process):
  for _ in range(300):
    with contextlib.suppress(OSError):
      socket.create_connection(("127.0.0.1", port)).close()
      return
    if process.poll() is not None:
      break
    time.sleep(0.1)
  raise OSError("the emulator does not answer")


def _refusal(request, folder, objects):
  """The status and message by which a request is refused, or None."""
  with contextlib.suppress(FileNotFoundError):
    text = (pathlib.Path(folder) / "refused").read_text()
    status, _, message = text.partition(" ")
    return HTTPStatus(int(status)), message
  wanted = request.query.get("ifGenerationMatch")
  if request.method == "POST" and wanted:
    found = objects.get(request.query["name"][0], {"generation": "0"})
    if found["generation"] != wanted[0]:
      return HTTPStatus.PRECONDITION_FAILED, "another generation"
  return None


def main(port, folder):
  """Answers requests to the end of the process."""
  from gcp_storage_emulator import server

  handle = server.Router.handle

  def check_and_handle(router, method):
    handler = router._request_handler
    objects = handler.storage.objects.get(BUCKET, {})
    request = server.Request(handler, method)
    refused = _refusal(request, folder, objects)
    if refused is None:
      return handle(router, method)
    response = server.Response(handler)
    response.status, message = refused
    response.json({"error": {"code": int(refused[0]), "message": message}})
    return response.close()

  server.Router.handle = check_and_handle
  server.create_server(
    "127.0.0.1", int(port), in_memory=True, default_bucket=BUCKET
  ).run()


if __name__ == "__main__":
  main(*sys.argv[1:])
