"""What there is beside this node: keepalived's word on its role, and the peers. Read here, acted upon nowhere."""

from pathlib import Path
from types import TracebackType
from typing import Self

from reconciler.agreement import Peer
from reconciler.board import Board
from reconciler.fifo import Fifo
from reconciler.model import Node
from reconciler.peers import Peers
from reconciler.vrrp import Vrrp


class Pair:
    """For the loop, which never waits for either."""

    def __init__(self, node: Node, run_dir: Path, board: Board) -> None:
        self._fifo = Fifo(Path(node.vrrp_fifo), run_dir) if node.vrrp_fifo else None
        self._peers = Peers(node.peers, board)

    def __enter__(self) -> Self:
        self._peers.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._peers.close()
        if self._fifo:
            self._fifo.close()

    def vrrp(self) -> Vrrp | None:
        """None: node.yaml names no FIFO."""
        return self._fifo.look() if self._fifo else None

    def peers(self) -> tuple[Peer, ...]:
        return self._peers.look()
