"""Google Cloud Storage on this machine, as tests and their children reach it.

  python tests/gcs.py PORT FOLDER

runs gcp-storage-emulator in memory, with one bucket, and adds what it lacks of
the real one: conditions on generations, and refusal. While FOLDER holds a file
`refused`, every request is answered by its text: a status and a message.
"""

import contextlib
import pathlib
import socket
import subprocess
import sys
import time
from http import HTTPStatus

BUCKET = "bucket"


def environment(port) -> dict:
  """Variables by which gcsfs and TensorStore reach the emulator, and no other.

  TensorStore reads them once in a process, so users of it are children.
  """
  url = f"http://127.0.0.1:{port}"
  return {
    "STORAGE_EMULATOR_HOST": url,
    "TENSORSTORE_GCS_HTTP_URL": url,
    "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
    # What it would ask first goes by gRPC, past the emulator.
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    "NO_GCE_CHECK": "true",
  }


@contextlib.contextmanager
def serve(port, folder):
  """The emulator's process, which answers until the block ends."""
  command = [sys.executable, __file__, str(port), str(folder)]
  log = open(pathlib.Path(folder) / "log", "w")
  with log, subprocess.Popen(command, stderr=log) as process:
    try:
      _await(port, process)
      yield process
    finally:
      process.kill()


def refuse(folder, status: int, message: str):
  (folder / "refused").write_text(f"{status} {message}")


def accept(folder):
  (folder / "refused").unlink()


def _await(port, process):
  for _ in range(300):
    with contextlib.suppress(OSError), socket.create_connection(("", port)):
      return
    assert process.poll() is None, "the emulator ended"
    time.sleep(0.1)
  raise TimeoutError("the emulator does not answer")


def main(port, folder):
  from gcp_storage_emulator import server

  handle = server.Router.handle

  def refusal(router, method):
    """The status and message by which a request is refused, or None."""
    with contextlib.suppress(FileNotFoundError):
      text = (pathlib.Path(folder) / "refused").read_text()
      status, _, message = text.partition(" ")
      return HTTPStatus(int(status)), message
    request = server.Request(router._request_handler, method)
    wanted = request.query.get("ifGenerationMatch")
    if method == server.POST and wanted:
      objects = router._request_handler.storage.objects.get(BUCKET, {})
      found = objects.get(request.query["name"][0], {"generation": "0"})
      if found["generation"] != wanted[0]:
        return HTTPStatus.PRECONDITION_FAILED, "another generation"
    return None

  def checked(router, method):
    refused = refusal(router, method)
    if refused is None:
      return handle(router, method)
    response = server.Response(router._request_handler)
    response.status, message = refused
    response.json({"error": {"code": int(refused[0]), "message": message}})
    response.close()

  server.Router.handle = checked
  server.create_server(
    "127.0.0.1", int(port), in_memory=True, default_bucket=BUCKET
  ).run()


if __name__ == "__main__":
  main(*sys.argv[1:])
