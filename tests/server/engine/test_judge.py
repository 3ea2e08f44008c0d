import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recurra.server.engine.batch import Batch
from recurra.server.engine.judge import continues, judge
from recurra.server.engine.operation import Create, Kind
from recurra.server.engine.ownership import Ownership
from recurra.server.engine.scheduler import Part
from recurra.server.store import record
from recurra.wire.errors import (
    AlreadyApplied,
    Behind,
    DataLoss,
    Diverged,
    Mismatch,
    ModelChanged,
    SessionClosed,
    SessionExists,
    SessionExpired,
    SessionNotFound,
    StateReset,
)

LAYOUT = np.array([11, 12], np.uint64)
DIGEST = np.array([21, 22], np.uint64)
NOW_MS = 1_000_000
OWNERSHIP = Ownership(1.0)
FIRST, LAST, NEW, OTHER, EARLIER, NONE = (1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (0, 0)


def head(last=LAST, *, kind=record.LIVE, incarnation=FIRST, operation=Kind.PREDICT, layout=LAYOUT, digest=DIGEST):
    """Where the store says that a session stands: created by FIRST, changed by EARLIER, last by LAST."""
    there = np.zeros(1, record.HEADER)
    there["format"], there["kind"], there["operation"] = record.FORMAT, kind, operation
    there["id"], there["incarnation"], there["layout"], there["digest"] = last, incarnation, layout, digest
    there["recent"][:, 1] = EARLIER
    there["position"] = 40
    return there


def both(block, heads, *, digest=DIGEST, row=0):
    """What the columns and the judge say of one row."""
    others = bool(OWNERSHIP.others(heads, NOW_MS)[row])
    verdict = judge(block, row, heads[row], LAYOUT, digest=digest, others=others, now_ms=NOW_MS)
    return bool(
        continues(Batch([Part(block, np.arange(len(heads)))]), heads, LAYOUT, OWNERSHIP, now_ms=NOW_MS)[row]
    ), verdict


@pytest.fixture
def operation(block):
    """An operation NEW, that continues `after`."""
    return lambda after=NONE, id_=NEW, **more: block(
        [1], ids=np.array([id_], np.uint64), afters=np.array([after], np.uint64), **({"kind": Kind.PREDICT} | more)
    )


CLOSED = {"kind": record.CLOSED, "operation": Kind.END}
ELSEWHERE = {"layout": np.array([11, 99], np.uint64)}


@pytest.mark.parametrize(
    ("asked", "there"),
    [
        ({}, {}),
        ({"after": LAST}, {}),
        ({"after": LAST, "create": Create.NEVER}, {}),
        ({"create": Create.NEVER}, {}),
        ({"after": LAST, "create": Create.NEW}, {}),
        ({}, None),
        ({"create": Create.NEW}, None),
        ({"told_expire_ms": NOW_MS - 1}, None),
        ({"after": LAST}, CLOSED),
        ({"after": LAST, "create": Create.NEW}, CLOSED),
        ({"after": LAST}, CLOSED | ELSEWHERE),
        ({"after": LAST, "id_": (2, 1)}, {}),  # half the last one's id, half the first one's
        ({"create": Create.ANEW}, {}),
        ({"create": Create.ANEW}, None),
        ({"create": Create.ANEW}, CLOSED),
        ({"create": Create.ANEW}, ELSEWHERE),
        ({"after": LAST, "kind": Kind.END}, ELSEWHERE),
        ({"after": LAST, "kind": Kind.RESET, "whole": True}, ELSEWHERE),
    ],
    ids=str,
)
def test_it_applies(operation, asked, there):
    heads = record.MISSING if there is None else head(**there)
    assert both(operation(**asked), heads) == (True, None)


@pytest.mark.parametrize(
    ("asked", "there", "expected"),
    [
        ({"after": OTHER}, {}, Behind),
        ({"after": FIRST}, {}, Behind),
        ({"after": OTHER}, {"operation": Kind.RESET}, StateReset),
        ({"after": OTHER}, {"operation": Kind.SET}, StateReset),
        ({"id_": FIRST}, {}, AlreadyApplied),
        ({"id_": FIRST, "after": LAST}, {}, AlreadyApplied),
        ({"id_": FIRST}, CLOSED, AlreadyApplied),
        ({"id_": EARLIER}, {}, AlreadyApplied),
        ({"id_": EARLIER, "after": LAST}, {}, AlreadyApplied),
        ({"id_": EARLIER, "after": LAST}, CLOSED, AlreadyApplied),
        ({"create": Create.ANEW, "after": OTHER}, {}, Behind),
        ({"create": Create.ANEW, "id_": FIRST}, {}, AlreadyApplied),
        ({"create": Create.NEW}, {}, SessionExists),
        ({"create": Create.NEW}, CLOSED, SessionClosed),
        ({}, CLOSED, SessionClosed),
        ({"after": OTHER}, CLOSED, SessionClosed),
        ({"after": LAST, "create": Create.NEVER}, CLOSED, SessionClosed),
        ({"after": LAST, "kind": Kind.END, "create": Create.NEVER}, CLOSED, SessionClosed),
        ({}, ELSEWHERE, ModelChanged),
        ({"after": LAST}, ELSEWHERE, ModelChanged),
        ({"kind": Kind.SET}, ELSEWHERE, ModelChanged),
        ({"kind": Kind.RESET}, ELSEWHERE, ModelChanged),
        ({"create": Create.NEVER}, None, SessionNotFound),
        ({"after": LAST}, None, SessionNotFound),
        ({"told_expire_ms": NOW_MS + 1}, None, DataLoss),
        ({"create": Create.NEVER, "told_expire_ms": NOW_MS - 1}, None, SessionExpired),
        ({"after": LAST, "told_expire_ms": NOW_MS - 1}, None, SessionExpired),
        ({"after": LAST, "told_expire_ms": NOW_MS}, None, SessionExpired),
        ({"after": LAST, "told_expire_ms": NOW_MS + 1}, None, DataLoss),
        ({"after": LAST, "told_expire_ms": NOW_MS + 1, "create": Create.NEW}, None, DataLoss),
    ],
    ids=lambda value: getattr(value, "__name__", None) or str(value),
)
def test_it_does_not_apply_and_the_judge_says_why(operation, asked, there, expected):
    heads = record.MISSING if there is None else head(**there)
    applies, verdict = both(operation(**asked), heads)
    assert not applies
    assert type(verdict) is expected
    if isinstance(verdict, Mismatch):
        assert verdict.last_id == heads["id"].tobytes()
        assert verdict.position == 40
        assert verdict.incarnation == heads["incarnation"].tobytes()


@pytest.mark.parametrize("after", [NONE, FIRST, LAST, OTHER], ids=str)
@pytest.mark.parametrize("there", [{}, CLOSED, ELSEWHERE, {"operation": Kind.RESET}], ids=str)
def test_the_last_operation_again_is_a_duplicate_whatever_it_continued(operation, after, there):
    assert both(operation(after, id_=LAST), head(**there)) == (False, None)


def test_the_operation_that_created_the_session_again_is_a_duplicate_while_it_is_the_last(operation):
    assert both(operation(id_=FIRST), head(last=FIRST)) == (False, None)


@pytest.mark.parametrize("there", [{}, CLOSED, ELSEWHERE], ids=str)
def test_the_last_operations_id_with_another_input_has_diverged(operation, there):
    applies, verdict = both(operation(id_=LAST), head(**there), digest=DIGEST + np.uint64(1))
    assert not applies
    assert type(verdict) is Diverged
    assert verdict.last_id == np.array(LAST, np.uint64).tobytes()


# Also ids that are each half another's.
ids = st.sampled_from([FIRST, LAST, NEW, OTHER, EARLIER, (3, 0), (0, 3), (2, 1), (1, 2), (5, 2), (2, 5)])
heads_ = st.none() | st.builds(
    head,
    last=st.sampled_from([FIRST, LAST, OTHER]),
    kind=st.sampled_from([record.LIVE, record.CLOSED]),
    incarnation=st.sampled_from([FIRST, LAST]),
    operation=st.sampled_from(list(Kind)),
    layout=st.sampled_from([LAYOUT, LAYOUT, LAYOUT, ELSEWHERE["layout"], LAYOUT[::-1]]),
    digest=st.sampled_from([DIGEST, DIGEST + np.uint64(1), DIGEST[::-1]]),
)


def test_columns_and_judge_agree_on_every_row(block):
    @settings(max_examples=400)
    @given(
        st.lists(st.tuples(ids, st.just(NONE) | st.just(None) | ids, heads_), min_size=1, max_size=5),
        st.sampled_from(list(Kind)),
        st.booleans(),
        st.sampled_from(list(Create)),
        st.sampled_from([0, NOW_MS - 1, NOW_MS + 1]),
    )
    def agree(rows, kind, whole, create, told_expire_ms):
        heads = np.concatenate([record.MISSING if row[2] is None else row[2] for row in rows])
        afters = [last if row[1] is None else row[1] for row, last in zip(rows, heads["id"].tolist(), strict=True)]
        operations = block(
            range(1, len(rows) + 1),
            kind=kind,
            whole=whole,
            create=create,
            told_expire_ms=told_expire_ms,
            ids=np.array([row[0] for row in rows], np.uint64),
            afters=np.array(afters, np.uint64),
        )
        for row in range(len(rows)):
            applies, verdict = both(operations, heads, row=row)
            duplicate = (operations.ids[row] == heads["id"][row]).all()
            assert applies == (verdict is None and not duplicate)
            assert not (duplicate and type(verdict) not in (type(None), Diverged))

    agree()


def test_a_batch_is_decided_row_by_row_whatever_blocks_it_came_from(block):
    first = block([1, 2], ids=np.array([NEW, LAST], np.uint64), create=Create.NEVER)
    second = block([3, 4, 5], ids=np.array([OTHER, NEW, NEW], np.uint64), create=Create.NEW)
    batch = Batch([Part(first, np.array([1, 0])), Part(second, np.array([0, 2]))])
    heads = np.concatenate([head(), head(), head(), record.MISSING])
    assert continues(batch, heads, LAYOUT, OWNERSHIP, now_ms=NOW_MS).tolist() == [False, True, False, True]
