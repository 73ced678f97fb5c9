"""Exit status 0 if the server in this container answers that it is SERVING; asked at the admin address, on loopback.

``health.py HOST:PORT`` asks another address; ``health.py --live`` is content with any answer.
"""

from __future__ import annotations

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SECONDS = 4


def main(arguments: list[str]) -> int:
    target = next((argument for argument in arguments if not argument.startswith("--")), "127.0.0.1:50052")
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
        except grpc.RpcError as error:
            print(f"{target}: {error.code().name}: {error.details()}", file=sys.stderr)
            return 1
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    print(status)
    return 0 if status == "SERVING" or "--live" in arguments else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
