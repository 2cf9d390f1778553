"""Each process's share of every training batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dtp_deploy.errors import UsageError
from dtp_deploy.loading.source import Batch, TrainStream
from dtp_deploy.modules import rows_of


class ShardedStream:
    """Every `world`-th sample of each batch of a stream, from `rank` on.

    All processes draw the same batches, so together they see what a single process would, and a run may go on with
    another number of them: the state is that of the whole stream.

    Args:
        stream: the same in all processes.
        batch_size: of the whole; a multiple of `world`.
        rank: of this process.
        world: number of processes.

    Raises:
        UsageError: the batch cannot be shared evenly.
    """

    def __init__(self, stream: TrainStream, batch_size: int, rank: int, world: int) -> None:
        if batch_size % world:
            raise UsageError(
                f"--batch-size {batch_size} cannot be shared by {world} processes. Give a multiple of {world}."
            )
        self.stream, self.rank, self.world = stream, rank, world

    def __len__(self) -> int:
        return len(self.stream)

    def __iter__(self) -> Iterator[Batch]:
        for inputs, targets in self.stream:
            rows = slice(self.rank, None, self.world)
            yield rows_of(inputs, rows), rows_of(targets, rows)

    def state(self) -> dict[str, Any]:
        """Of the whole stream."""
        return self.stream.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """Of the whole stream."""
        self.stream.load_state(state)
