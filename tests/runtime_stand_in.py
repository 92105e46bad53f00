"""SageMaker's runtime API on loopback, as AWS's own clients speak it, in front of a server of ours.

It passes on what InvokeEndpoint passes to a container: the body, Content-Type, Accept and the custom attributes. What
a container refuses comes back as ModelError.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests

PASSED_ON = ("Content-Type", "Accept", "X-Amzn-SageMaker-Custom-Attributes")
INVOKED = re.compile(r"/endpoints/([^/]+)/invocations")
ARN = "arn:aws:sagemaker:us-east-1:123456789012"


@contextmanager
def runtime(server: str, endpoint: str) -> Iterator[dict[str, str]]:
    """The environment in which boto3, and all that is built on it, finds `endpoint` at the address `server`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            described = self.headers.get("X-Amz-Target") == "SageMaker.DescribeEndpoint"
            if described and json.loads(body)["EndpointName"] == endpoint:
                known = {"EndpointName": endpoint, "EndpointArn": f"{ARN}:endpoint/{endpoint}"}
                times = {"CreationTime": 1.0, "LastModifiedTime": 1.0}
                self._answer(200, json.dumps(known | times | {"EndpointStatus": "InService"}).encode(), {})
                return
            found = INVOKED.fullmatch(self.path)
            if found is None or found[1] != endpoint:
                message = {"Message": f"Endpoint {self.path} of account 123456789012 not found."}
                self._answer(400, json.dumps(message).encode(), {"x-amzn-ErrorType": "ValidationError"})
                return
            headers = {name: self.headers[name] for name in PASSED_ON if name in self.headers}
            reply = requests.post(f"{server}/invocations", data=body, headers=headers, timeout=60)
            if reply.status_code == 200:
                named = {"Content-Type": reply.headers["Content-Type"], "x-Amzn-Invoked-Production-Variant": "main"}
                self._answer(200, reply.content, named)
                return
            refused = {
                "Message": f"Received client error ({reply.status_code}) from primary with message {reply.text!r}",
                "OriginalStatusCode": reply.status_code,
                "OriginalMessage": reply.text,
            }
            self._answer(424, json.dumps(refused).encode(), {"x-amzn-ErrorType": "ModelError"})

        def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            """Nothing."""

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    try:
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{listener.server_address[1]}",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
        }
    finally:
        listener.shutdown()
        listener.server_close()
