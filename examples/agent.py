import asyncio
import json
import sys

import nats
from nats.js.errors import KeyWrongLastSequenceError

ANSWERS = {
    "LOAD": ["LOADING", "LOADED"],  # fetch the artifact here
    "ACTIVATE": ["ACTIVATING", "ACTIVE"],  # start it here
    "DEACTIVATE": ["DEACTIVATING", "LOADED"],  # stop it here
    "UNLOAD": ["UNLOADING", None],  # stop it and free everything here
}


async def main(node: str, server: str) -> None:
    client = await nats.connect(server)
    slices = await client.jetstream().key_value("slices")
    async for entry in await slices.watch(f"{node}.>"):
        if entry is None or not entry.value:
            continue  # end of the first listing, or a key that is gone: stop what ran under it
        value, revision = json.loads(entry.value), entry.revision
        try:
            for state in ANSWERS.get(value["state"], []):
                if state is None:
                    await slices.delete(entry.key, last=revision)
                else:
                    value["state"] = state
                    revision = await slices.update(entry.key, json.dumps(value).encode(), last=revision)
        except KeyWrongLastSequenceError:
            pass  # the leader wrote in between: its command comes next


asyncio.run(main(*sys.argv[1:]))
