"""Move a whole history to another store while bots keep running."""

from letopis.store.ops.move.mover import Moved as Moved
from letopis.store.ops.move.mover import MoveProgress as MoveProgress
from letopis.store.ops.move.mover import cancel_move as cancel_move
from letopis.store.ops.move.mover import move as move

__all__ = ("MoveProgress", "Moved", "cancel_move", "move")
