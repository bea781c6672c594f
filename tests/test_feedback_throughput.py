"""Throughput of `feedback` against a server that answers after a fixed time, beside a bare client."""

from __future__ import annotations

import pytest

pytest.importorskip("openai", reason="the extra [feedback] is not installed")

from benchmarks.feedback_throughput import measure


def test_both_sides_are_measured() -> None:
    found = measure(latency=0.05, spread=0.0, concurrency=4, num_requests=24, num_rounds=1)
    assert 0 < found["ours"] <= 80 and 0 < found["bare"] <= 80 and found["in_flight"] <= 4


@pytest.mark.slow
def test_it_reaches_95_percent_of_what_the_server_alone_can_do() -> None:
    """16 requests in flight, 0.5 to 1.5 s each: about 16 a second, 20 one after the other at each slot."""
    found = measure(latency=1.0, spread=0.5, concurrency=16, num_requests=320, num_rounds=3)
    assert found["ours_over_bare"] >= 0.95 and found["in_flight"] >= 0.95 * 16, found
