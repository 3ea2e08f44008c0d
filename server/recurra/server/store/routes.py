"""Which primary of a cluster has which hash slot, and the pipes to them."""

from __future__ import annotations

from binascii import crc_hqx
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from redis.exceptions import RedisError

from recurra.server.store.address import Nodes
from recurra.server.store.pipe import Pipe
from recurra.server.store.primary import OPENING
from recurra.server.store.record import TAG_BYTES

Array = NDArray[Any]
Address = tuple[str, int]

HASH_SLOTS: Final = 16_384
NOBODY: Final = -1
_TAG: Final = TAG_BYTES - 2  # without the braces
# A CRC is linear: that of a tag is the sum, by XOR, of what each of its bytes gives at its place.
_CRC: Final = np.array(
    [[crc_hqx(bytes([byte]).ljust(_TAG - at, b"\0"), 0) for byte in range(256)] for at in range(_TAG)], np.uint16
)


def hash_slots(keys: Array) -> NDArray[np.intp]:
    """(N,), where in a cluster each of `keys`, (N, K) uint8, belongs: by its hash tag."""
    tags = keys[:, 1 - TAG_BYTES : -1]
    slots: NDArray[np.intp] = np.bitwise_xor.reduce(_CRC[np.arange(_TAG), tags], 1).astype(np.intp) % HASH_SLOTS
    return slots


class Routes:
    """The cluster as it was last seen.

    Attributes:
        primaries: hosts and ports, by the first hash slot of each.
        owner: (HASH_SLOTS,) the place in `primaries` of who has a hash slot, or NOBODY.
    """

    def __init__(self, nodes: Nodes, timeout_seconds: float) -> None:
        self._nodes, self._timeout = nodes, timeout_seconds
        self.primaries: list[Address] = []
        self.owner = np.full(HASH_SLOTS, NOBODY)
        self._pipes: dict[tuple[Address, bool], Pipe] = {}

    async def ask(self) -> str | None:
        """Ask the cluster, for `take` to go by. Returns what went wrong."""
        manager = self._nodes.manager
        # Those in the URL are always asked, too: a name may lead to other nodes tomorrow.
        manager.startup_nodes = {node.name: node for node in (*self._nodes.known, *manager.nodes_cache.values())}
        try:
            await manager.initialize()
        except (RedisError, OSError) as error:
            return str(error)
        return None

    def take(self, moved: list[str]) -> None:
        """Go by what the cluster said, and then by `moved`: what nodes answered instead of serving."""
        told = self._nodes.manager.slots_cache.items()
        found = {slot: (nodes[0].host, int(nodes[0].port)) for slot, nodes in told}
        for text in moved:
            _, slot, place = text.split()[:3]
            host, _, port = place.rpartition(":")
            if host:
                found[int(slot)] = host, int(port)
        self.primaries = list(dict.fromkeys(found[slot] for slot in sorted(found)))
        places = {address: place for place, address in enumerate(self.primaries)}
        self.owner[:] = NOBODY
        self.owner[list(found)] = [places[address] for address in found.values()]

    def pipe(self, address: Address, *, waiting: bool = False) -> Pipe:
        """The pipe to a node; `waiting`: the one whose commands wait for its replicas."""
        pipe = self._pipes.get((address, waiting))
        if pipe is None:
            pool = self._nodes.pool(*address)
            pipe = Pipe(pool, timeout_seconds=self._timeout, opening=OPENING, resends=False)
            self._pipes[address, waiting] = pipe
        return pipe

    def drop(self) -> None:
        """Break the connections to nodes that owe an answer."""
        for pipe in self._pipes.values():
            if pipe.busy:
                pipe.drop("no answer in time")

    async def close(self) -> None:
        for pipe in self._pipes.values():
            await pipe.close()
        await self._nodes.manager.aclose()
        for node in self._nodes.known:
            await node.disconnect()
