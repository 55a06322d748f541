"""Metrics of a service in Prometheus' text format."""

import time
from collections import Counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

BOUNDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds


class RequestMetrics:
    """Counts requests by path and status, and their seconds in buckets."""

    def __init__(self):
        self.requests: Counter[tuple[str, int]] = Counter()
        self.buckets: Counter[float] = Counter()
        self.seconds = 0.0

    def add(self, path: str, status: int, seconds: float) -> None:
        """Add a request that was answered."""
        self.requests[path, status] += 1
        if status < 400:
            self.seconds += seconds
            self.buckets.update(bound for bound in (*BOUNDS, float("inf")) if seconds <= bound)

    def text(self, waiting: int) -> str:
        """All metrics, see https://prometheus.io/docs/instrumenting/exposition_formats."""
        lines = ["# HELP mpformer_requests_total Answered requests.", "# TYPE mpformer_requests_total counter"]
        for (path, status), count in sorted(self.requests.items()):
            lines.append(f'mpformer_requests_total{{path="{path}",status="{status}"}} {count}')
        name = "mpformer_request_seconds"
        lines += [f"# HELP {name} Seconds of requests that were answered well.", f"# TYPE {name} histogram"]
        for bound in BOUNDS:
            lines.append(f'{name}_bucket{{le="{bound:g}"}} {self.buckets[bound]}')
        total = self.buckets[float("inf")]
        lines += [f'{name}_bucket{{le="+Inf"}} {total}', f"{name}_sum {self.seconds:.6f}", f"{name}_count {total}"]
        lines += ["# HELP mpformer_waiting Images that wait for the model.", "# TYPE mpformer_waiting gauge"]
        return "\n".join([*lines, f"mpformer_waiting {waiting}", ""])


class Monitor:
    """Adds each request to the metrics. Not a middleware of requests and responses: that would hide from the service
    that a client has gone."""

    def __init__(self, app: ASGIApp, metrics: RequestMetrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def watch(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, watch)
        finally:
            route = scope.get("route")
            self.metrics.add(route.path if route else "other", status, time.perf_counter() - start)
