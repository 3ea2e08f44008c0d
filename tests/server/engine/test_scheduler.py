import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from recurra.server.engine.operation import Block, Kind
from recurra.server.engine.scheduler import _SCAN_BATCHES, Part, Scheduler

SLOTS = 7
LONG = 40
MAX_BATCH = 4
READY = np.ones(SLOTS, bool)


@pytest.fixture
def queue():
    return Scheduler(max_batch=MAX_BATCH, slots=SLOTS)


def taken(parts: list[Part]) -> list[tuple[int, int]]:
    """(block's sequence, row) of each operation, in order."""
    return [(part.block.sequence, row) for part in parts for row in part.rows.tolist()]


def started(queue: Scheduler, now: float = 0, ready=READY) -> list[tuple[int, int]]:
    parts, late = queue.next(now, ready)
    assert not late
    return taken(parts)


class Queue(RuleBasedStateMachine):
    """The model: each operation that waits, as (block's sequence, row), and each that was started."""

    block: Callable[..., Block]
    blocks = Bundle("blocks")

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(max_batch=MAX_BATCH, slots=SLOTS)
        self.by_sequence = {}
        self.waiting: set[tuple[int, int]] = set()
        self.started: set[tuple[int, int]] = set()
        self.over: set[tuple[int, int]] = set()
        self.now = 0

    def slot(self, operation):
        sequence, row = operation
        return int(self.by_sequence[sequence].slots[row])

    def moved(self, parts, to):
        operations = taken(parts)
        assert len(set(operations)) == len(operations)
        assert set(operations) <= self.waiting
        self.waiting -= set(operations)
        to |= set(operations)
        return operations

    @rule(
        target=blocks,
        slots=st.lists(st.integers(1, SLOTS - 1), min_size=1, max_size=SLOTS, unique=True)
        | st.integers(1, 3).map(lambda n: [0] * n),
        kind=st.sampled_from([Kind.RESET, Kind.SET]),
        timesteps=st.sampled_from([1, 1, 1, LONG]),
        patience=st.integers(1, 8),
    )
    def arrives(self, slots, kind, timesteps, patience):
        sequence = len(self.by_sequence) + 1
        new = type(self).block(slots, kind=kind, timesteps=timesteps, deadline=self.now + patience, sequence=sequence)
        self.by_sequence[sequence] = new
        self.scheduler.add(new)
        self.waiting |= {(sequence, row) for row in range(len(slots))}
        return new

    @rule(
        ready=st.lists(st.booleans(), min_size=SLOTS - 1, max_size=SLOTS - 1) | st.just([True] * (SLOTS - 1)),
        longest=st.sampled_from([sys.maxsize, LONG, LONG - 1]),
    )
    def next_batch(self, ready, longest):
        ready = np.array([True, *ready])
        waiting = set(self.waiting)
        parts, late = self.scheduler.next(self.now, ready, longest=longest)
        gone = self.moved(late, self.over)
        batch = self.moved(parts, self.started)
        assert all(self.by_sequence[sequence].deadline <= self.now for sequence, _ in gone)
        assert all(self.by_sequence[sequence].deadline > self.now for sequence, _ in batch)
        # A block that is late comes out whole: nothing of it is left behind.
        assert not {sequence for sequence, _ in gone} & {sequence for sequence, _ in self.waiting}
        assert len(batch) <= MAX_BATCH
        assert all(self.by_sequence[sequence].timesteps <= longest for sequence, _ in batch)
        assert len({self.by_sequence[sequence].key for sequence, _ in batch}) <= 1
        assert all(len(part.rows) for part in parts)
        sessions = [self.slot(operation) for operation in batch if self.slot(operation)]
        assert len(set(sessions)) == len(sessions)
        assert all(ready[slot] for slot in sessions)
        assert [sequence for sequence, _ in batch] == sorted(sequence for sequence, _ in batch)
        for operation in batch:
            earlier = {other for other in waiting if other[0] < operation[0] and other not in gone}
            assert self.slot(operation) == 0 or self.slot(operation) not in map(self.slot, earlier)
        # The oldest that could be started begins the batch; where none is started and none is late, none could be.
        if len({sequence for sequence, _ in waiting}) <= MAX_BATCH * _SCAN_BATCHES and not gone:
            first = [other for other in self.first_of_each(waiting) if self.by_sequence[other[0]].timesteps <= longest]
            could = [other for other in first if ready[self.slot(other)]]
            assert batch[:1] == sorted(could)[:1]

    def first_of_each(self, operations):
        heads = {}
        for operation in sorted(operations):
            heads.setdefault(self.slot(operation) or operation, operation)
        return heads.values()

    @precondition(lambda self: self.started)
    @rule(data=st.data())
    def some_are_put_back(self, data):
        sequence = data.draw(st.sampled_from(sorted({sequence for sequence, _ in self.started})))
        rows = sorted(row for number, row in self.started if number == sequence)
        rows = data.draw(st.lists(st.sampled_from(rows), min_size=1, unique=True))
        self.scheduler.put_back(self.by_sequence[sequence], np.array(rows))
        again = {(sequence, row) for row in rows}
        self.started -= again
        self.waiting |= again

    @precondition(lambda self: self.started)
    @rule(data=st.data())
    def some_are_done(self, data):
        done = data.draw(st.sets(st.sampled_from(sorted(self.started)), min_size=1))
        self.started -= done
        self.over |= done

    @rule(cancelled=blocks)
    def is_withdrawn(self, cancelled):
        mine = {operation for operation in self.waiting if operation[0] == cancelled.sequence}
        assert set(self.moved(self.scheduler.withdraw(cancelled), self.over)) == mine

    @rule(slots=st.lists(st.integers(0, SLOTS - 1), min_size=1, unique=True))
    def sessions_are_taken(self, slots):
        mine = {operation for operation in self.waiting if self.slot(operation) in slots}
        assert set(self.moved(self.scheduler.take(np.array(slots)), self.over)) == mine

    @rule(seconds=st.integers(1, 3))
    def time_passes(self, seconds):
        self.now += seconds

    @invariant()
    def nothing_is_lost_or_doubled(self):
        assert self.scheduler.queued == len(self.waiting)
        assert not self.waiting & self.started
        for sequence, known in self.by_sequence.items():
            assert known.waiting.tolist() == sorted(row for number, row in self.waiting if number == sequence)

    def teardown(self):
        """All that is left comes out, in as many batches as it takes."""
        while self.waiting:
            parts, late = self.scheduler.next(self.now, READY)
            assert parts or late
            self.moved(parts, self.started)
            self.moved(late, self.over)
        everything = {(s, row) for s, known in self.by_sequence.items() for row in range(len(known.slots))}
        assert self.started | self.over == everything


def test_the_scheduler_obeys_its_model(block):
    """Any mix of arrivals, batches, failures, cancels: judged by a list of single operations."""
    Queue.block = staticmethod(block)
    run_state_machine_as_test(Queue, settings=settings(max_examples=150, stateful_step_count=40, deadline=None))


def test_operations_of_many_sessions_go_into_one_batch(queue, block):
    for sequence in (1, 2, 3):
        queue.add(block([sequence], sequence=sequence))
    assert started(queue) == [(1, 0), (2, 0), (3, 0)]
    assert queue.queued == 0
    assert started(queue) == []


def test_a_sessions_operations_come_one_batch_after_another(queue, block):
    for sequence in (1, 2, 3):
        queue.add(block([5], sequence=sequence))
    assert [started(queue) for _ in range(4)] == [[(1, 0)], [(2, 0)], [(3, 0)], []]


def test_a_block_larger_than_a_batch_is_started_in_pieces_and_others_wait_their_turn(queue, block):
    queue.add(block([1, 2, 3, 4, 5, 6], sequence=1))
    queue.add(block([1], sequence=2))
    assert started(queue) == [(1, 0), (1, 1), (1, 2), (1, 3)]
    assert started(queue) == [(1, 4), (1, 5), (2, 0)]


def test_the_oldest_operation_says_which_kind_is_next(queue, block):
    queue.add(block([1], sequence=1, kind=Kind.SET))
    queue.add(block([2], sequence=2, kind=Kind.RESET))
    queue.add(block([3], sequence=3, kind=Kind.SET))
    assert started(queue) == [(1, 0), (3, 0)]
    assert started(queue) == [(2, 0)]


def test_an_operation_of_another_kind_does_not_let_the_sessions_later_ones_pass(queue, block):
    queue.add(block([1], sequence=1, kind=Kind.SET))
    queue.add(block([2], sequence=2, kind=Kind.RESET))
    queue.add(block([2], sequence=3, kind=Kind.SET))
    assert started(queue) == [(1, 0)]
    assert started(queue) == [(2, 0)]
    assert started(queue) == [(3, 0)]


def test_a_session_that_is_not_ready_holds_up_itself_alone(queue, block):
    queue.add(block([1, 2], sequence=1))
    queue.add(block([1, 3], sequence=2))
    ready = READY.copy()
    ready[1] = False
    assert started(queue, ready=ready) == [(1, 1), (2, 1)]
    assert started(queue) == [(1, 0)]
    assert started(queue) == [(2, 0)]


def test_stateless_operations_share_a_batch_though_all_have_slot_0(queue, block):
    for sequence in (1, 2, 3):
        queue.add(block([0], sequence=sequence))
    assert started(queue) == [(1, 0), (2, 0), (3, 0)]


def test_a_long_chunk_waits_where_only_short_ones_are_wanted_and_its_session_with_it(queue, block):
    queue.add(block([1], sequence=1, timesteps=LONG))
    queue.add(block([1], sequence=2, timesteps=1))
    queue.add(block([2], sequence=3, timesteps=1))
    parts, _ = queue.next(0, READY, longest=LONG - 1)
    assert taken(parts) == [(3, 0)]
    assert started(queue) == [(1, 0)]
    assert started(queue) == [(2, 0)]


def test_sessions_behind_a_crowd_of_another_are_not_kept_waiting(queue, block):
    for sequence in range(1, 100):
        queue.add(block([1], sequence=sequence))
    queue.add(block([2], sequence=100))
    assert started(queue) == [(1, 0), (100, 0)]
    assert [started(queue) for _ in range(98)] == [[(sequence, 0)] for sequence in range(2, 100)]
    assert queue.queued == 0


def test_what_is_put_back_comes_before_what_came_later(queue, block):
    first, second = block([1, 2], sequence=1), block([1, 2], sequence=2)
    queue.add(first)
    queue.add(second)
    assert started(queue) == [(1, 0), (1, 1)]
    queue.put_back(first, np.array([1]))
    assert queue.queued == 3
    assert started(queue) == [(1, 1), (2, 0)]
    assert started(queue) == [(2, 1)]


def test_what_is_past_its_deadline_comes_out_apart(queue, block):
    queue.add(block([1, 2], sequence=1, deadline=5.0))
    queue.add(block([1], sequence=2, deadline=9.0))
    parts, late = queue.next(5.0, READY)
    assert taken(late) == [(1, 0), (1, 1)]
    assert taken(parts) == [(2, 0)]
    assert queue.queued == 0


def test_a_deadline_passes_also_where_the_session_is_not_ready(queue, block):
    queue.add(block([1], sequence=1, deadline=5.0))
    parts, late = queue.next(6.0, np.zeros(SLOTS, bool))
    assert (taken(parts), taken(late)) == ([], [(1, 0)])


def test_withdrawing_leaves_what_was_started_and_everybody_else(queue, block):
    first, second = block([1, 2, 3, 4, 5], sequence=1), block([6], sequence=2)
    queue.add(first)
    queue.add(second)
    assert len(started(queue)) == 4
    assert taken(queue.withdraw(first)) == [(1, 4)]
    assert queue.withdraw(first) == []
    assert queue.queued == 1
    assert started(queue) == [(2, 0)]
