"""A stand-in for AWS on loopback: moto's server behind a gate that is stricter than moto.

moto accepts nearly anything, lacks some operations, and ends every job at once. The gate in front of it
- tests every SageMaker request, as it came over the wire, against botocore's model of the API: types, required members,
  lengths, patterns, allowed words;
- answers what moto has not (its answers are tested against the model too);
- plays the faults that tests ask for: error codes, throttling, cut connections;
- does, when a job is created, what the job's container would do: logs, outputs in S3.
"""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
import urllib.parse
from collections import defaultdict
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import botocore.session
from botocore.validate import ParamValidator
from tests.aws.policy import Need, needs

from image_classifier.sagemaker.validation import validate

Body = dict[str, Any]
Answer = Callable[[Body], Body]
HOP = {"connection", "transfer-encoding", "content-length", "host", "expect"}
OURS = re.compile(r"image-classifier|sagemaker-core|SageMaker-Core", re.IGNORECASE)  # not the tests' own clients
INVOKE = re.compile(r"/endpoints/([^/]+)/(invocations|async-invocations)")


class Fault(Exception):
    """An error answer, in AWS's JSON form."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code, self.message, self.status = code, message, status


class Cut(Exception):
    """The connection is closed without an answer."""


class Gate:
    """The server. `calls` are the (operation, body) of every request that got here, in order."""

    def __init__(self, moto_port: int) -> None:
        self.moto_port = moto_port
        self.calls: list[tuple[str, Body]] = []
        self.needed: set[Need] = set()  # what deploy.py asked IAM for, in the whole session
        self.refused: list[str] = []  # requests the real API would not have taken
        self.answers: dict[str, Answer] = {}
        self.xml: dict[str, Callable[[Body], str]] = {}  # as `answers`, for services that speak XML
        self.faults: dict[str, list[Exception]] = defaultdict(list)
        self.after: dict[str, Callable[[Body], None]] = {}
        self.lost: dict[str, int] = defaultdict(int)  # so many answers never arrive, though the request was carried out
        self.invoke: Callable[[bytes, dict[str, str]], tuple[int, bytes]] | None = None
        self.invoke_async: Callable[[dict[str, str]], tuple[str, str]] | None = None
        self._model = botocore.session.get_session().get_service_model("sagemaker")
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def reset(self) -> None:
        """Forgets everything, moto too."""
        for kept in (self.calls, self.refused, self.answers, self.xml, self.faults, self.after, self.lost):
            kept.clear()
        self.invoke = self.invoke_async = None
        connection = http.client.HTTPConnection("127.0.0.1", self.moto_port)
        connection.request("POST", "/moto-api/reset")
        connection.getresponse().read()
        connection.close()

    def bodies(self, operation: str) -> list[Body]:
        """The bodies of the requests for one operation."""
        return [body for name, body in self.calls if name == operation]

    def operations(self) -> set[str]:
        return {name for name, _ in self.calls}

    def fail(self, operation: str, *faults: Exception) -> None:
        """The next requests for `operation` fail, one after the other, in these ways."""
        self.faults[operation] += faults

    def answer(self, operation: str, make: Answer) -> None:
        """Answers instead of moto."""
        self.answers[operation] = make

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        gate = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = gate._read(self)
                operation, document = gate._understand(self, body)
                gate.calls.append((operation, document))
                if OURS.search(self.headers.get("User-Agent", "")):
                    gate.needed.update(needs(operation, document))
                try:
                    status, headers, reply = gate._reply(self, operation, document, body)
                except Cut:
                    self.close_connection = True
                    return
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                if self.command != "HEAD":
                    self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(reply)

            do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = handle_any  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

        return Handler

    @staticmethod
    def _read(handler: BaseHTTPRequestHandler) -> bytes:
        if handler.headers.get("Expect", "").lower() == "100-continue":
            handler.send_response_only(100)
            handler.end_headers()
        if "chunked" in handler.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(handler.rfile.readline().split(b";")[0], 16):
                body += handler.rfile.read(size)
                handler.rfile.readline()
            handler.rfile.readline()
            return body
        return handler.rfile.read(int(handler.headers.get("Content-Length") or 0))

    @staticmethod
    def _understand(handler: BaseHTTPRequestHandler, body: bytes) -> tuple[str, Body]:
        """Operation and body: `CreateModel`, `iam:GetRole`, `s3:PUT`, `invocations`."""
        if target := handler.headers.get("X-Amz-Target", ""):
            service, _, operation = target.rpartition(".")
            return (operation if service == "SageMaker" else f"{service}.{operation}"), json.loads(body or b"{}")
        scope = re.search(r"Credential=[^/]+/\d+/[^/]+/([^/]+)/", handler.headers.get("Authorization", ""))
        service = scope.group(1) if scope else "unknown"
        if found := INVOKE.search(handler.path):
            return found.group(2), {**handler.headers, "EndpointName": found.group(1)}
        if service == "s3":
            source = handler.headers.get("x-amz-copy-source", "")
            keys = re.findall(r"<Key>(.*?)</Key>", body.decode("utf-8", "replace")) if handler.command == "POST" else []
            path = urllib.parse.unquote(handler.path)
            return f"s3:{'copy' if source else handler.command}", {"path": path, "source": source, "keys": keys}
        form = dict(urllib.parse.parse_qsl(body.decode("utf-8", "replace")))
        operation = form.get("Action") or handler.path.rpartition("/")[2]
        return f"{service}:{operation}", dict(form)

    def _reply(
        self, handler: BaseHTTPRequestHandler, operation: str, document: Body, body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        try:
            if self.faults[operation]:
                raise self.faults[operation].pop(0)
            ours = operation in self._model.operation_names
            if ours:
                self._test_request(operation, document)
            if operation in self.xml:
                return 200, [("Content-Type", "text/xml")], self.xml[operation](document).encode()
            if operation in self.answers:
                reply = self.answers[operation](document)
                if ours:
                    self._test_reply(operation, reply)
                content = json.dumps(reply, default=str).encode()
                return 200, [("Content-Type", "application/x-amz-json-1.1")], content
            if operation == "invocations" and self.invoke is not None:
                status, content = self.invoke(body, dict(handler.headers))
                if status == 200:
                    return 200, [("Content-Type", "application/json")], content
                message = {"OriginalStatusCode": status, "OriginalMessage": content.decode(), "Message": "of the model"}
                return 424, _error("ModelError"), json.dumps(message).encode()
            if operation == "async-invocations" and self.invoke_async is not None:
                good, failed = self.invoke_async(dict(handler.headers))
                where = [("X-Amzn-SageMaker-OutputLocation", good), ("X-Amzn-SageMaker-FailureLocation", failed)]
                return 202, [("Content-Type", "application/json"), *where], b'{"InferenceId": "1"}'
        except Fault as fault:
            if operation.startswith("s3:"):
                text = f"<Error><Code>{fault.code}</Code><Message>{fault.message}</Message></Error>"
                return fault.status, [("Content-Type", "application/xml")], text.encode()
            if ":" in operation:
                text = f"<ErrorResponse><Error><Code>{fault.code}</Code><Message>{fault.message}</Message></Error>"
                return fault.status, [("Content-Type", "text/xml")], f"{text}</ErrorResponse>".encode()
            reply = {"__type": fault.code, "message": fault.message}
            return fault.status, _error(fault.code), json.dumps(reply).encode()
        answer = self._forward(handler, body)
        if answer[0] < 300 and operation in self.after:
            self.after[operation](document)
        if self.lost[operation]:
            self.lost[operation] -= 1
            raise Cut
        return answer

    def _test_request(self, operation: str, document: Body) -> None:
        try:
            validate("sagemaker", operation, document)
        except Exception as error:
            self.refused.append(str(error))
            raise Fault("ValidationException", str(error)) from None

    def _test_reply(self, operation: str, reply: Body) -> None:
        shape = self._model.operation_model(operation).output_shape
        report = ParamValidator().validate(reply, shape) if shape is not None else None
        if report is not None and report.has_errors():
            raise AssertionError(f"the test's own answer to {operation} is wrong: {report.generate_report()}")

    def _forward(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.moto_port, timeout=30)
        headers = {name: value for name, value in handler.headers.items() if name.lower() not in HOP}
        connection.request(handler.command, handler.path, body=body, headers=headers)
        response = connection.getresponse()
        content = response.read()
        kept = [(name, value) for name, value in response.getheaders() if name.lower() not in HOP | {"date", "server"}]
        if handler.command == "HEAD" and (length := response.getheader("Content-Length")):
            kept.append(("Content-Length", length))
        connection.close()
        return response.status, kept, content


def _error(code: str) -> list[tuple[str, str]]:
    return [("Content-Type", "application/x-amz-json-1.1"), ("x-amzn-ErrorType", code)]


def wait_for_port(port: int, seconds: float) -> None:
    """Returns when something listens on the port."""
    end = time.monotonic() + seconds
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        try:
            connection.request("GET", "/moto-api/data.json")
            connection.getresponse().read()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
        else:
            return
        finally:
            connection.close()
