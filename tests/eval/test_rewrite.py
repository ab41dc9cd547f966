"""Prompts rewritten by a real server on this machine, or by a file."""

import hashlib
import http.server
import json
import threading

import pytest

from goku_jax.eval import rewrite
from goku_jax.typing import UserError


class Server(http.server.ThreadingHTTPServer):
  """An endpoint that answers in capitals, unless the test says otherwise.

  `answers` is a list of (status, body) to give first; a body that is no dict
  is sent as it is, and None hangs up.
  """

  def __init__(self):
    super().__init__(("127.0.0.1", 0), Handler)
    self.asked, self.headers, self.answers = [], [], []
    self.lock, self.location = threading.Lock(), None

  @property
  def base(self):
    return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(http.server.BaseHTTPRequestHandler):
  """Notes what was asked, then answers."""

  def do_POST(self):
    body = self.rfile.read(int(self.headers["Content-Length"]))
    server, asked = self.server, json.loads(body)
    with server.lock:
      server.asked.append((self.path, asked))
      server.headers.append(dict(self.headers))
      first = server.answers.pop(0) if server.answers else None
    prompt = asked["messages"][-1]["content"]
    status, answer = first or (200, say(f" {prompt.upper()}\n in detail "))
    if answer is None:
      return
    data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    self.send_response(status)
    self.send_header("Content-Length", str(len(data)))
    self.send_header("Retry-After", "0")
    if server.location:
      self.send_header("Location", server.location)
    self.end_headers()
    self.wfile.write(data)

  def log_message(self, *_):
    pass


def say(text, reason="stop"):
  message = {"role": "assistant", "content": text}
  return {"choices": [{"message": message, "finish_reason": reason}]}


@pytest.fixture
def server(monkeypatch):
  monkeypatch.setenv("no_proxy", "127.0.0.1")
  with Server() as server:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()


def endpoint(server, **fields):
  fields = {"wait": 0.001, "tries": 4, "timeout": 10.0} | fields
  return rewrite.Endpoint(server.base, "model-1", "Rewrite.", **fields)


def test_an_endpoint_is_asked_once_for_each_prompt(server, tmp_path):
  prompts = [f"cat {i}" for i in range(20)]
  found = rewrite.from_endpoint(
    prompts * 2, endpoint(server, key="secret"), tmp_path / "cache.jsonl"
  )
  assert found == {p: f"{p.upper()} in detail" for p in prompts}
  assert len(server.asked) == 20
  path, body = server.asked[0]
  assert path == "/v1/chat/completions"
  assert body["model"] == "model-1"
  assert body["messages"][0] == {"role": "system", "content": "Rewrite."}
  assert {h["Authorization"] for h in server.headers} == {"Bearer secret"}
  assert "secret" not in (tmp_path / "cache.jsonl").read_text()


def test_a_rerun_asks_only_what_is_new(server, tmp_path):
  cache = tmp_path / "cache.jsonl"
  first = rewrite.from_endpoint(["a cat"], endpoint(server), cache)
  found = rewrite.from_endpoint(["a dog", "a cat"], endpoint(server), cache)
  assert found == {"a dog": "A DOG in detail"} | first
  assert len(server.asked) == 2
  assert rewrite.from_file(["a dog", "a cat"], cache) == found


def test_another_model_or_instruction_is_asked_anew(server, tmp_path):
  cache = tmp_path / "cache.jsonl"
  one = endpoint(server)
  for other in (one, one._replace(model="b"), one._replace(instruction="C")):
    rewrite.from_endpoint(["a cat"], other, cache)
  assert len(server.asked) == 3


@pytest.mark.parametrize(
  "failure",
  [
    (503, b"overloaded"),
    (429, b"slow down"),
    (200, b"no JSON"),
    (200, {"error": "none"}),
    (200, say(None)),
    (200, say(" ")),
    (200, say("A cat that", "length")),
    (200, None),
  ],
)
def test_an_endpoint_that_fails_twice_is_asked_again(server, tmp_path, failure):
  server.answers = [failure, failure]
  found = rewrite.from_endpoint(["a cat"], endpoint(server), tmp_path / "c")
  assert found == {"a cat": "A CAT in detail"}
  assert len(server.asked) == 3


def test_an_endpoint_that_stays_empty_is_refused(server, tmp_path):
  server.answers = [(200, say(""))] * 4
  with pytest.raises(UserError, match=r"'a cat' in 4 tries \(an empty answer"):
    rewrite.from_endpoint(["a cat"], endpoint(server), tmp_path / "c")
  assert len(server.asked) == 4


def test_a_refused_key_is_told_at_once(server, tmp_path):
  server.answers = [(401, b"wrong key\nsorry")]
  with pytest.raises(UserError, match="HTTP 401 wrong key sorry") as error:
    rewrite.from_endpoint(["a cat"], endpoint(server), tmp_path / "c")
  assert "\n" not in str(error.value)
  assert len(server.asked) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_key_goes_to_nobody_else_and_into_no_file(server, tmp_path, status):
  with Server() as other:
    server.location = f"{other.base}/stolen"
    server.answers = [(status, b"")]
    asked = endpoint(server, key="sk-secret")
    with pytest.raises(UserError, match=f"refuses: HTTP {status}") as error:
      rewrite.from_endpoint(["a cat"], asked, tmp_path / "c")
    other.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
      other.socket.accept()
  rewrite.from_endpoint(["a cat"], asked, tmp_path / "c")
  assert server.headers[-1]["Authorization"] == "Bearer sk-secret"
  told = [(tmp_path / "c").read_text(), str(error.value), asked.describe()]
  assert "sk-secret" not in str(told)


@pytest.mark.parametrize(
  "base", ["file:///etc/passwd", "ftp://host", "https://me:password@host/v1"]
)
def test_an_address_of_another_kind_is_not_opened_nor_a_password_told(
  tmp_path, base
):
  asked = rewrite.Endpoint(base, "m", "Rewrite.")
  with pytest.raises(UserError, match="address") as error:
    rewrite.from_endpoint(["a cat"], asked, tmp_path / "c")
  assert "password@" not in str(error.value)


def test_what_was_answered_before_a_failure_is_not_asked_again(
  server, tmp_path
):
  prompts = ["a cat", "a dog", "a hen"]
  answers = [(200, say("A CAT")), (400, b"filtered")]
  server.answers = answers
  cache = tmp_path / "cache.jsonl"
  with pytest.raises(UserError, match="HTTP 400 filtered"):
    rewrite.from_endpoint(prompts, endpoint(server), cache, threads=1)
  asked = len(server.asked)
  found = rewrite.from_endpoint(prompts, endpoint(server), cache, threads=1)
  assert found["a cat"] == "A CAT"
  again = [body["messages"][1]["content"] for _, body in server.asked[asked:]]
  assert "a cat" not in again
  assert "a dog" in again


def test_no_server_is_told_in_one_line(tmp_path, port):
  nobody = rewrite.Endpoint(
    f"http://127.0.0.1:{port}/v1", "m", "Rewrite.", tries=2, wait=0.001
  )
  with pytest.raises(UserError, match=r"in 2 tries .*refused"):
    rewrite.from_endpoint(["a cat"], nobody, tmp_path / "c")
  with pytest.raises(UserError, match="is no address"):
    rewrite.from_endpoint(["a"], nobody._replace(base="host/v1"), tmp_path)


def test_a_file_gives_the_prompts_asked_for(tmp_path):
  path = tmp_path / "rewritten.jsonl"
  rows = [{"prompt": p, "rewritten": p.upper()} for p in ("a cat", "a dog")]
  path.write_text("\n".join(map(json.dumps, rows)))
  assert rewrite.from_file(["a dog"], path) == {"a dog": "A DOG"}
  assert rewrite.describe_file(path) == {
    "file": "rewritten.jsonl",
    "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
  }


@pytest.mark.parametrize(
  ("row", "message"),
  [
    ({"prompt": "a dog", "rewritten": " "}, "1 of 2 .*'a dog' is empty"),
    ({"prompt": "a hen", "rewritten": "A"}, "1 of 2 .*'a dog' is missing"),
    ({"prompt": "a cat", "rewritten": "B"}, "'a cat', differently"),
    ({"prompt": "a dog"}, "each line needs"),
  ],
)
def test_a_file_that_lacks_a_text_is_refused(tmp_path, row, message):
  path = tmp_path / "rewritten.jsonl"
  rows = [{"prompt": "a cat", "rewritten": "A"}, row]
  path.write_text("\n".join(map(json.dumps, rows)))
  with pytest.raises(UserError, match=message):
    rewrite.from_file(["a cat", "a dog"], path)


def test_the_instruction_is_a_file_of_ours_or_the_users(tmp_path):
  assert "meaning" in rewrite.read_instruction()
  (tmp_path / "mine.txt").write_text(" Longer.\n")
  assert rewrite.read_instruction(tmp_path / "mine.txt") == "Longer."
  (tmp_path / "mine.txt").write_text("\n")
  with pytest.raises(UserError, match="is empty"):
    rewrite.read_instruction(tmp_path / "mine.txt")
