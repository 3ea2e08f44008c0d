"""A backup of the store and its restore, as docs/reliability.md walks through it: sessions go on, clients are told."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from recurra.client import Client, DataLoss, Diverged
from tests.conftest import StartServer
from tests.models import graphs
from tests.service.caller import Caller
from tests.service.processes import eventually
from tests.service.topologies import Node, free_ports
from tests.service.zoo import CLOSE, MODELS

LSTM = MODELS["lstm"]
X = LSTM.draw(0, 30)
LINES = ("save ''", "appendonly yes", "appendfsync everysec")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path / "store", free_ports(1)[0], *LINES)
    yield made
    made.close()


def file_backed_up(node: Node, backup: Path) -> None:
    """The append-only file's folder, which no rewrite may change meanwhile."""
    node.ask("CONFIG", "SET", "auto-aof-rewrite-percentage", 0)
    eventually(lambda: not node.client.info("persistence")["aof_rewrite_in_progress"])
    # With everysec a write waits for the disk while the last second is brought there.
    eventually(lambda: not node.client.info("persistence")["aof_buffer_length"])
    shutil.copytree(node.folder / "appendonlydir", backup / "appendonlydir")
    node.ask("CONFIG", "SET", "auto-aof-rewrite-percentage", 100)


def snapshot_backed_up(node: Node, backup: Path) -> None:
    node.ask("BGSAVE")
    eventually(lambda: not node.client.info("persistence")["rdb_bgsave_in_progress"])
    backup.mkdir()
    shutil.copy(node.folder / "dump.rdb", backup)


def file_restored(node: Node, backup: Path) -> None:
    shutil.copytree(backup / "appendonlydir", node.folder / "appendonlydir")
    node.start()


def snapshot_restored(node: Node, backup: Path) -> None:
    """Without an append-only file first: with one, Valkey begins with an empty one and reads no snapshot."""
    shutil.copy(backup / "dump.rdb", node.folder)
    node.start("--appendonly", "no")
    node.ask("CONFIG", "SET", "appendonly", "yes")
    eventually(lambda: not node.client.info("persistence")["aof_rewrite_in_progress"])


@pytest.mark.parametrize(
    ("backed_up", "restored"),
    [(file_backed_up, file_restored), (snapshot_backed_up, snapshot_restored)],
    ids=["append-only file", "snapshot"],
)
def test_a_restored_backup_goes_on_where_it_was_made_and_clients_are_told(
    start_server: StartServer, node: Node, tmp_path: Path, backed_up, restored
) -> None:
    models = graphs.write(LSTM.built, tmp_path / "models", "lstm").parent
    server = start_server(models=models, store=f"redis://127.0.0.1:{node.port}")
    with Client(server.address) as client, Client(server.address, window_bytes=0) as forgetful:
        remembers, forgot = client.session("lstm", "remembers"), forgetful.session("lstm", "forgot")
        for handle in (remembers, forgot):
            handle.predict(X[:10])
        backed_up(node, tmp_path / "backup")
        for handle in (remembers, forgot):
            for at in (10, 15):
                handle.predict(X[at : at + 5])
        young = client.session("lstm", "young")
        young.predict(X[:5])

        node.kill()
        shutil.rmtree(node.folder / "appendonlydir")
        restored(node, tmp_path / "backup")

        np.testing.assert_allclose(remembers.predict(X[20:]), LSTM.whole(X)[20:], **CLOSE)
        with pytest.raises(Diverged, match="more operations than the window holds"):
            forgot.predict(X[20:])
        with pytest.raises(DataLoss):
            young.predict(X[5:])
        forgot.follow()
        assert forgot.position == 10
        np.testing.assert_allclose(forgot.predict(X[10:]), LSTM.whole(X)[10:], **CLOSE)
    node.kill()
    node.start()  # what the restored store took is in its file
    with Caller(server.address) as caller:
        eventually(lambda: caller.get("lstm", "remembers").position == 30)
