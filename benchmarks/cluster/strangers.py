"""What one machine answers to another that has no credentials; :mod:`benchmarks.cluster.ports` runs it on the other.

python benchmarks/cluster/strangers.py ADDRESS PORT…     prints a JSON object per port
"""

from __future__ import annotations

import http.client
import json
import socket
import sys

import grpc

SECONDS = 5.0
METHODS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.InternalKVGcsService/InternalKVGet",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.ReporterService/GetTraceback",
    "/ray.rpc.RayletDriver/ClusterInfo",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
)
"""One of each service that Ray's ports have: which of them a port knows, it says by its answer."""
PATHS = (
    ("GET", "/"),
    ("GET", "/metrics"),
    ("GET", "/api/jobs/"),
    ("GET", "/api/local_raylet_healthz"),
    ("POST", "/api/job_agent/jobs/"),
    ("GET", "/logs"),
    ("POST", "/get_or_create_runtime_env"),
    ("POST", "/delete_runtime_env_if_possible"),
)
"""Requests of HTTP that Ray's and MLflow's ports know."""


def accepts(address: str, port: int) -> bool:
    """Whether it takes a connection at all."""
    try:
        socket.create_connection((address, port), timeout=SECONDS).close()
    except OSError:
        return False
    return True


def by_grpc(address: str, port: int) -> dict[str, str]:
    """The status of each method that the port does not deny to know; nothing where it speaks no gRPC."""
    found = {}
    with grpc.insecure_channel(f"{address}:{port}") as channel:
        for method in METHODS:
            try:
                answer = channel.unary_unary(method)(b"", timeout=SECONDS)
                found[method] = f"ANSWERED, {len(answer)} bytes"
            except grpc.RpcError as error:
                if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    return found
                if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                    found[method] = f"{error.code().name}: {error.details()}"
    return found


def by_http(address: str, port: int) -> dict[str, str]:
    """The answer to each request that it does not find unknown; nothing where it speaks no HTTP."""
    found = {}
    for method, path in PATHS:
        connection = http.client.HTTPConnection(address, port, timeout=SECONDS)
        try:
            connection.request(method, path, body=b"" if method == "POST" else None)
            answer = connection.getresponse()
            body = answer.read(2000)
        except (OSError, http.client.HTTPException):
            return found
        finally:
            connection.close()
        if answer.status not in (404, 405):
            found[f"{method} {path}"] = f"{answer.status}, {body[:100].decode(errors='replace')!r}"
    return found


def main(address: str, ports: list[int]) -> None:
    """Print what each port answers."""
    for port in ports:
        open_ = accepts(address, port)
        found = by_grpc(address, port) or by_http(address, port) if open_ else {}
        print(json.dumps({"port": port, "open": open_, "answers": found}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], [int(port) for port in sys.argv[2:]])
