"""A client process of callpool: it submits its whole share at once, and waits. The supervisor does the rest."""

from __future__ import annotations

import callpool
from callpool.tools.loadtest.configuration import PROVIDER
from callpool.tools.loadtest.member import perform
from callpool.tools.loadtest.messages import ThroughCallpool
from callpool.tools.loadtest.scenario import MODEL, message


async def run(order: ThroughCallpool) -> None:
    """Make all requests of the order."""
    async with callpool.AsyncClient(order.address) as client:

        async def ask(number: int) -> str | None:
            try:
                handle = await client.submit(
                    provider=PROVIDER,
                    model=MODEL,
                    messages=[{"role": "user", "content": message(order.client, number)}],
                    max_tokens=order.max_tokens,
                    fake={"delay": order.delays[number - 1]},
                )
                await handle.result()
            except callpool.CallpoolError as error:
                return error.code
            return None

        await perform(len(order.delays), ask, wait=order.wait)
