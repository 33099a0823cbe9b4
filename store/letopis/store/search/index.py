"""Store the codes of words in each database, and find messages by them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.dialects import in_batches
from letopis.store.database.schema import conversations, messages, same_conversation, search
from letopis.store.read.task_marks import is_shown
from letopis.store.search.analysis import GENERATION, Word, scope_code, words
from letopis.store.search.query import Query, Term

_KEY: Final = ("partition", "generation", "conversation_id", "version")
_COLUMNS: Final = (*_KEY, "content_version", "position", "occurred_at", "scope", "document")
_RANKED: Final = ("partition", "conversation_id", "version", "content_version", "position", "occurred_at")
_VALUES: Final = tuple(name for name in _COLUMNS if name not in _KEY)
_ON_CONFLICT: Final = (
    f"ON CONFLICT ({', '.join(_KEY)}) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _VALUES)}"
)
_GENERATIONS: Final = (GENERATION - 1, GENERATION)
MAX_RANKED: Final = 5_000
"""Messages that one search ranks: of more that match, the newest."""
MAX_POSITIONS: Final = 256
"""Positions of a word that PostgreSQL keeps in a ``tsvector``."""
IndexRow = tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A message to index."""

    partition: int
    conversation_id: str
    version: int
    content_version: int
    position: int
    occurred_at: int
    owner_id: str | None
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchScope:
    """Which messages are searched."""

    owner: str | None
    conversation: str | None
    bounds: dict[int, int]


class Index(ABC):
    """The full-text index of one kind of database."""

    # A message that must not be found has its row emptied, not deleted: the right to insert and update is enough.
    _UPSERT: ClassVar[str]

    async def forget(
        self, connection: AsyncConnection, partition: int, conversation_id: str, versions: Collection[int] | None
    ) -> None:
        """Empty the rows of messages, or with ``None`` all of a conversation, in the open transaction."""
        empty = self._empty(partition, conversation_id)
        if versions is None:
            await connection.execute(empty)
            return
        for part in in_batches(sorted(versions)):
            await connection.execute(empty.where(search.c.version.in_(part)))

    async def forget_between(
        self, connection: AsyncConnection, partition: int, conversation_id: str, after: int, upto: int
    ) -> None:
        """Empty the rows of the messages after a version and up to another, in the open transaction."""
        await connection.execute(
            self._empty(partition, conversation_id).where(search.c.version > after, search.c.version <= upto)
        )

    def _empty(self, partition: int, conversation_id: str) -> sa.Update:
        return (
            sa.update(search)
            .where(
                search.c.generation.in_(_GENERATIONS),
                search.c.partition == partition,
                search.c.conversation_id == conversation_id,
                search.c.document != self._nothing(),
            )
            .values(scope=self._nothing(), document=self._nothing())
        )

    def rows(self, documents: Iterable[Document]) -> list[IndexRow]:
        """Return the rows of messages that have a word; computes the codes, which takes time."""
        made = []
        for document in documents:
            if there := words(document.text):
                scope = (scope_code("c", document.conversation_id), scope_code("o", document.owner_id))
                key = (document.partition, GENERATION, document.conversation_id, document.version)
                shown = (document.content_version, document.position, document.occurred_at)
                made.append((*key, *shown, self._scope(scope), self._document(there)))
        return made

    async def write(self, connection: AsyncConnection, rows: Sequence[IndexRow]) -> None:
        """Write rows, replacing those of the same messages."""
        if rows:
            await connection.exec_driver_sql(self._UPSERT, self._bound(rows))

    def _bound(self, rows: Sequence[IndexRow]) -> Any:
        """Return rows as the driver takes them."""
        return list(rows)

    async def best(
        self, connection: AsyncConnection, query: Query, where: SearchScope, *, limit: int
    ) -> tuple[list[sa.Row[Any]], int]:
        """Return those of the best rows whose message is shown with the content indexed, and how many were ranked."""
        rows = (await connection.execute(self.select(query, where, limit=limit))).all()
        return [row for row in rows if row.there], len(rows)

    def _ranked(self, query: Query, where: SearchScope, limit: int) -> sa.Select[*tuple[Any, ...]]:
        condition, ranked_by = self._match(query, _scoped(where))
        newest = (
            sa.select(*(search.c[name] for name in _RANKED), ranked_by.label("ranked_by"))
            .select_from(self._source())
            .where(condition, _checked(search.c.generation == GENERATION), _within(where.bounds))
            # A common word may be in half of all messages, and to rank them all takes seconds.
            .order_by(*self._newest_first())
            .limit(max(MAX_RANKED, limit))
        )
        if where.conversation is not None:
            newest = newest.where(search.c.conversation_id == where.conversation)
        n = newest.subquery("n")
        return (
            sa.select(*(n.c[name] for name in _RANKED), self._score(query, n.c.ranked_by).label("score"))
            .order_by(sa.text("score DESC"), n.c.occurred_at.desc(), n.c.position.desc())
            .limit(limit)
        )

    def select(self, query: Query, where: SearchScope, *, limit: int) -> sa.Executable:
        """Return the select of the best rows: partition, conversation, version, position, score and ``there``."""
        # ``there``: 1 for a message on the path of a conversation that is not deleted, with the content indexed.
        b, m, c = self._ranked(query, where, limit).subquery("b"), messages, conversations  # only the best are joined
        shown = is_shown(m)
        there = sa.and_(m.c.version.is_not(None), c.c.conversation_id.is_not(None))
        if where.owner is not None:
            # The codes of the scope narrow the search; the owner of a message is that of its conversation.
            there = sa.and_(there, c.c.owner_id == where.owner)
        return (
            sa.select(
                *(b.c[name] for name in ("partition", "conversation_id", "version", "position", "score")),
                sa.case((there, 1), else_=0).label("there"),
            )
            .select_from(
                b.outerjoin(m, sa.and_(same_conversation(m, b, "version", "content_version"), shown)).outerjoin(
                    c, sa.and_(same_conversation(c, b), c.c.state != "deleted")
                )
            )
            .order_by(b.c.score.desc(), b.c.occurred_at.desc(), b.c.position.desc())
        )

    def _scope(self, codes: Sequence[str]) -> str:
        return " ".join(codes)

    def _document(self, there: Sequence[Word]) -> str:
        # All words, then all their stems: neighbours are found in both.
        return " ".join([*(word.exact_code for word in there), *(word.stem_code for word in there)])

    def _nothing(self) -> sa.ColumnElement[Any]:
        return sa.literal_column("''")

    def _source(self) -> sa.FromClause:
        return search

    def _newest_first(self) -> tuple[sa.ColumnElement[Any], ...]:
        return search.c.occurred_at.desc(), search.c.position.desc()

    @abstractmethod
    def _match(
        self, query: Query, scope: Sequence[Sequence[str]]
    ) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[Any]]:
        """Return the condition of a query, and what its score is made of."""

    def _score(self, query: Query, ranked_by: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """Return the score: what the database found it to be when it matched, unless it computes that later."""
        del query
        return ranked_by


class SQLiteIndex(Index):
    """FTS5 over the rows of the table, kept by triggers and ranked by BM25."""

    _WORDS: Final = sa.table("letopis_search_words", sa.column("rowid"))

    _UPSERT = (
        f"INSERT INTO letopis_search ({', '.join(_COLUMNS)})"  # noqa: S608
        f" VALUES ({', '.join('?' * len(_COLUMNS))}) {_ON_CONFLICT}"
    )

    def _source(self) -> sa.FromClause:
        return self._WORDS.join(search, sa.literal_column("letopis_search.id") == self._WORDS.c.rowid)

    def _newest_first(self) -> tuple[sa.ColumnElement[Any], ...]:
        return (self._WORDS.c.rowid.desc(),)  # by the order of indexing: FTS5 yields it without sorting

    def _match(
        self, query: Query, scope: Sequence[Sequence[str]]
    ) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[Any]]:
        wanted = " AND ".join(f"({' OR '.join(map(_phrase, _forms(term)))})" for term in query.wanted)
        asked = f"document : ({wanted})"
        if query.excluded:
            asked = f"({asked}) NOT (document : ({' OR '.join(_phrase(term.codes) for term in query.excluded)}))"
        for group in scope:
            asked = f"(scope : ({' OR '.join(_phrase((code,)) for code in group)})) AND ({asked})"
        return (
            sa.literal_column("letopis_search_words").bool_op("MATCH")(asked),
            # The scope has no weight in the score. In FTS5 smaller is better.
            sa.literal_column("-bm25(letopis_search_words, 0.0, 1.0)"),
        )


class PostgreSQLIndex(Index):
    """A ``tsvector`` with a GIN index: words with the weight A, stems with D, both with their positions."""

    # A word with more positions than are kept has a second code. A phrase with such a word may be anywhere: its words
    # are looked up, and the text decides, as it does of every hit.
    _UPSERT = (
        f"INSERT INTO letopis_search ({', '.join(_COLUMNS)})"  # noqa: S608
        " SELECT a, b, c, d, e, f, g, CAST(h AS tsvector), CAST(i AS tsvector) FROM unnest($1::integer[],"
        " $2::integer[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::text[],"
        f" $9::text[]) AS v(a, b, c, d, e, f, g, h, i) {_ON_CONFLICT}"
    )

    def _bound(self, rows: Sequence[IndexRow]) -> Any:
        return tuple(list(column) for column in zip(*rows, strict=True))

    def _document(self, there: Sequence[Word]) -> str:
        texts: dict[str, list[str]] = {}
        for position, word in enumerate(there, 1):
            texts.setdefault(word.exact_code, []).append(f"{position}A")
            texts.setdefault(word.stem_code, []).append(str(position))
        more = (_uncounted(code) for code, positions in texts.items() if len(positions) > MAX_POSITIONS)
        return " ".join([*(f"{code}:{','.join(positions)}" for code, positions in texts.items()), *more])

    def _nothing(self) -> sa.ColumnElement[Any]:
        return sa.literal_column("CAST('' AS tsvector)")

    def _match(
        self, query: Query, scope: Sequence[Sequence[str]]
    ) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[Any]]:
        asked = " & ".join([f"({self._wanted(query)})", *(f"!{_followed(term.codes)}" for term in query.excluded)])
        condition: sa.ColumnElement[bool] = search.c.document.bool_op("@@")(_query(asked))
        for group in scope:
            condition = sa.and_(condition, search.c.scope.bool_op("@@")(_query(" | ".join(group))))
        return condition, search.c.document

    def _score(self, query: Query, ranked_by: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        # Cover density; 1: a long text counts for less. Excluded terms are not part of it.
        weights: sa.ColumnElement[Any] = sa.literal_column("'{0.4, 0.4, 0.4, 1.0}'")
        return sa.func.ts_rank_cd(weights, ranked_by, _query(self._wanted(query)), 1)

    @staticmethod
    def _wanted(query: Query) -> str:
        return " & ".join(f"({' | '.join(map(_somewhere, _forms(term)))})" for term in query.wanted)


class CitusIndex(PostgreSQLIndex):
    """The same on several hosts, which cannot join the best of all with what each of them holds."""

    async def best(
        self, connection: AsyncConnection, query: Query, where: SearchScope, *, limit: int
    ) -> tuple[list[sa.Row[Any]], int]:
        m, c, key = messages, conversations, ("partition", "conversation_id", "version", "content_version")
        shown = sa.select(*(m.c[name] for name in key)).join_from(m, c, same_conversation(c, m))
        shown = shown.where(is_shown(m), c.c.state != "deleted")
        if where.owner is not None:
            shown = shown.where(c.c.owner_id == where.owner)
        ranked, held = (await connection.execute(self._ranked(query, where, limit))).all(), set[Any]()
        for part in in_batches(ranked):
            among = (m.c[name].in_({row._mapping[name] for row in part}) for name in key)
            held.update(map(tuple, await connection.execute(shown.where(*among))))
        return [row for row in ranked if tuple(row._mapping[name] for name in key) in held], len(ranked)


class MariaDBIndex(Index):
    """An InnoDB FULLTEXT index in boolean mode, ranked by its relevance."""

    _UPSERT = (
        f"INSERT INTO letopis_search ({', '.join(f'`{column}`' for column in _COLUMNS)})"  # noqa: S608
        f" VALUES ({', '.join(['%s'] * len(_COLUMNS))})"
        f" ON DUPLICATE KEY UPDATE {', '.join(f'`{column}` = VALUES(`{column}`)' for column in _VALUES)}"
    )

    def _match(
        self, query: Query, scope: Sequence[Sequence[str]]
    ) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[Any]]:
        asked = " ".join(
            [
                *(f"+({' '.join(group)})" for group in scope),
                *(f"+({' '.join(map(_phrase, _forms(term)))})" for term in query.wanted),
                *(f"-{_phrase(term.codes)}" for term in query.excluded),
            ]
        )
        from sqlalchemy.dialects import mysql  # the engine has imported it; other bots need none of it

        # As condition and as score; the server evaluates it once.
        match = mysql.match(search.c.scope, search.c.document, against=asked).in_boolean_mode()
        return match, match


def index_for(name: str) -> Index:
    kinds: dict[str, type[Index]] = {"sqlite": SQLiteIndex, "postgresql": PostgreSQLIndex, "citus": CitusIndex}
    return kinds.get(name, MariaDBIndex)()


def _scoped(where: SearchScope) -> list[tuple[str, ...]]:
    if where.conversation is not None:
        return [(scope_code("c", where.conversation),)]
    if where.owner is not None:
        # A conversation may get its owner after some of its messages.
        return [(scope_code("o", where.owner), scope_code("o", None))]
    return []


def _within(bounds: dict[int, int]) -> sa.ColumnElement[bool]:
    if len(bounds) == 1:
        ((only, bound),) = bounds.items()
        return sa.and_(_checked(search.c.partition == only), search.c.position <= bound)
    return search.c.position <= sa.case(bounds, value=search.c.partition, else_=-1)


def _checked(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    """Return a condition that no index serves but that of the words; the planner knows how many rows meet it."""
    # While PostgreSQL has no statistics of a grown table, it would prefer the index by generation and read all rows.
    return condition.is_(sa.true())


def _forms(term: Term) -> list[tuple[str, ...]]:
    """Return the codes of a term: its stem to be found, and its exact form to be found first."""
    exact = tuple(word.exact_code for word in term.words)
    return [exact] if term.exact else [term.codes, exact]


def _phrase(codes: Sequence[str]) -> str:
    return f'"{" ".join(codes)}"'


def _query(asked: str) -> sa.ColumnElement[Any]:
    from sqlalchemy.dialects import postgresql  # the engine has imported it; other bots need none of it

    return sa.cast(sa.literal(asked, sa.String), postgresql.TSQUERY)


def _followed(codes: Sequence[str]) -> str:
    return f"({' <-> '.join(codes)})"


def _somewhere(codes: Sequence[str]) -> str:
    if len(codes) == 1:
        return codes[0]
    return f"({_followed(codes)} | {' & '.join(codes)} & ({' | '.join(map(_uncounted, codes))}))"


def _uncounted(code: str) -> str:
    """Return the code of a word in messages that have it more often than positions of it are kept."""
    return f"x{code}"
