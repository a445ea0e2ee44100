"""An OpenAI-compatible server on this machine that answers as a test says, failures included."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = dict[str, Any]
"""``status``, ``headers``, ``body`` and ``delay_s``, all optional; ``text`` is a completion."""


class JudgeServer:
    """What was asked, and where."""

    def __init__(self, answer: Callable[[dict[str, Any], int], Answer]) -> None:
        self.answer = answer
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.times: list[float] = []
        self.url = ""
        self._lock = threading.Lock()

    def note(self, body: dict[str, Any], key: str) -> int:
        """The number of this request, from 0."""
        with self._lock:
            self.asked.append(body)
            self.keys.append(key)
            self.times.append(time.monotonic())
            return len(self.asked) - 1


@contextmanager
def judge_server(answer: Callable[[dict[str, Any], int], Answer]) -> Iterator[JudgeServer]:
    """Serve ``answer(request body, number of the request)``."""
    judge = JudgeServer(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/chat/completions"
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            number = judge.note(body, self.headers.get("Authorization", ""))
            said = judge.answer(body, number)
            time.sleep(said.get("delay_s", 0))
            content = said.get("body", completion(said.get("text", ""), **said.get("choice", {})))
            payload = content if isinstance(content, bytes) else json.dumps(content).encode()
            try:
                self.send_response(said.get("status", 200))
                for name, value in said.get("headers", {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client has timed out

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    judge.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield judge
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def completion(text: str | None, **choice: Any) -> dict[str, Any]:
    """A chat completion as the API returns it."""
    message = {"role": "assistant", "content": text, **choice.pop("message", {})}
    return {
        "id": "made",
        "object": "chat.completion",
        "created": 0,
        "model": "judge-2026-01",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message, **choice}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14},
    }
