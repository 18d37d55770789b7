"""What benchmarks read of servers, so that no change of the tests' own servers breaks it unnoticed."""

from __future__ import annotations

import pytest

from tests.bench.playground import playground
from tests.bench.resting import counters
from tests.harness.servers import FORGIVEN

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("sockets_forgiven"), FORGIVEN]


async def test_what_servers_count_is_read_from_the_processes_that_run() -> None:
    async with playground(monitoring=True) as on:
        before = await counters(on)
        await on.raw_puts("blueprints", [(f"org.example/s{number}/1.0.0", b"0") for number in range(1_000)])
        after = await counters(on)
        assert after[0] >= before[0] + 2_000  # with their acks
        assert after[1] > before[1]

        await on.servers[0].restart()
        anew = await counters(on)
        assert anew[0] < after[0] - before[0]  # another process, with another monitor, has counted nothing of that
