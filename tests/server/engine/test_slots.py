import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from recurra.server.engine.slots import COLD, HOT, LOADING, Slots
from recurra.server.store import record
from recurra.wire.errors import Overloaded

PREFIX = record.key_prefix("t", "m")
NAMES = [f"session {at}" for at in range(12)]


def identity(name: str) -> bytes:
    return record.identity("t", "m", name)


def acquire(slots: Slots, *names: str) -> list[int]:
    return [slots.acquire(identity(name), name.encode()) for name in names]


def make_hot(slots: Slots, *chosen: int) -> None:
    slots.pin(np.array(chosen))
    loading = slots.to_load()
    slots.install(loading, np.zeros(len(loading), record.HEADER), 1)
    slots.unpin(np.array(chosen))


def test_slot_0_is_nobodys_and_always_ready():
    slots = Slots(3, PREFIX)
    assert slots.ready.tolist() == [True, False, False, False]
    assert 0 not in acquire(slots, "a", "b", "c")
    slots.pin(np.zeros(5, np.intp))
    assert len(slots.to_load()) == 0
    slots.unpin(np.zeros(5, np.intp))
    acquire(slots, "d")
    assert slots.ready[0]
    assert slots.status[0] == HOT
    assert slots.epoch[0] == 0


def test_a_session_keeps_its_slot_and_its_columns_say_whose_it_is():
    slots = Slots(3, PREFIX)
    a, b = acquire(slots, "a", "bé")
    assert a != b
    assert acquire(slots, "bé", "a", "a") == [b, a, a]
    assert slots.identity(b) == identity("bé")
    assert slots.keys[b].tobytes() == record.key(PREFIX, identity("bé"))
    assert slots.names[b, : slots.name_bytes[b]].tobytes().decode() == "bé"
    assert not slots.names[b, slots.name_bytes[b] :].any()
    assert len(slots) == 2


def test_a_longer_name_before_leaves_nothing_behind():
    slots = Slots(1, PREFIX)
    acquire(slots, "a very long name")
    [slot] = acquire(slots, "b")
    assert slots.names[slot].tobytes().rstrip(b"\0") == b"b"


def test_the_session_that_was_used_longest_ago_goes():
    slots = Slots(3, PREFIX)
    a, b, c = acquire(slots, "a", "b", "c")
    slots.pin(np.array([a]))
    slots.unpin(np.array([a]))
    assert acquire(slots, "d") == [b]
    assert acquire(slots, "e") == [c]
    assert acquire(slots, "f") == [a]


def test_a_session_that_was_just_asked_for_is_not_the_next_to_go():
    slots = Slots(2, PREFIX)
    a, b = acquire(slots, "a", "b")
    assert acquire(slots, "a", "c") == [a, b]


def test_what_is_pinned_or_loading_stays_and_when_all_is_the_next_comer_is_refused():
    slots = Slots(2, PREFIX)
    a, b = acquire(slots, "a", "b")
    slots.pin(np.array([a, b]))
    with pytest.raises(Overloaded, match="every slot is in use") as refused:
        acquire(slots, "c")
    assert refused.value.retry_after > 0
    assert slots.to_load().tolist() == [a, b]
    slots.unpin(np.array([a, b]))
    with pytest.raises(Overloaded):  # nobody waits for them any more, but their answers are yet to come
        acquire(slots, "c")
    slots.install(np.array([b]), np.zeros(1, record.HEADER), 1)
    assert acquire(slots, "c", "a") == [b, a]


def test_a_share_of_many_slots_is_freed_at_once():
    slots = Slots(64, PREFIX)
    acquire(slots, *map(str, range(64)))
    acquire(slots, "new")
    assert len(slots) == 64 + 1 - 65 // 16
    gone = [name for name in map(str, range(64)) if identity(name) not in slots._of]
    assert gone == ["0", "1", "2", "3"]


def test_uses_and_epochs_tell_that_a_slot_has_changed_hands():
    slots = Slots(1, PREFIX)
    [slot] = acquire(slots, "a")
    uses, epoch = int(slots.uses[slot]), int(slots.epoch[slot])
    make_hot(slots, slot)
    acquire(slots, "a")
    assert (slots.uses[slot], slots.epoch[slot]) == (uses, epoch)
    slots.give_up(np.array([slot]))
    assert (slots.uses[slot], slots.epoch[slot]) == (uses, epoch + 1)
    acquire(slots, "b")
    assert (slots.uses[slot], slots.epoch[slot]) == (uses + 1, epoch + 2)


def test_a_cold_slot_is_loaded_once_and_only_while_somebody_waits():
    slots = Slots(3, PREFIX)
    a, b, _ = acquire(slots, "a", "b", "c")
    slots.pin(np.array([a, b]))
    slots.pin(np.array([a]))
    slots.unpin(np.array([b]))
    assert slots.to_load().tolist() == [a]
    assert slots.to_load().tolist() == []
    assert (slots.status[a], slots.status[b]) == (LOADING, COLD)
    head = np.zeros(1, record.HEADER)
    head["position"] = 7
    slots.install(np.array([a]), head, 1)
    assert slots.ready[a]
    assert slots.headers["position"][a] == 7
    slots.pin(np.array([a]))
    assert slots.to_load().tolist() == []  # it is hot
    slots.give_up(np.array([a]))
    assert not slots.ready[a]
    assert slots.to_load().tolist() == [a]


def test_while_a_long_chunk_runs_its_session_is_not_ready():
    slots = Slots(2, PREFIX)
    a, b = acquire(slots, "a", "b")
    make_hot(slots, a, b)
    slots.run_long(np.array([a, 0]), running=True)
    assert slots.ready.tolist() == [True, False, True]
    slots.pin(np.array([a]))
    slots.give_up(np.array([a]))
    make_hot(slots, a)
    assert not slots.ready[a]  # read anew meanwhile, but the chunk still runs
    slots.run_long(np.array([a, 0]), running=False)
    assert slots.ready.all()
    slots.run_long(np.array([b]), running=True)
    slots.give_up(np.array([b]))
    slots.run_long(np.array([b]), running=False)
    assert not slots.ready[b]  # given up, and not read yet


class Sessions(RuleBasedStateMachine):
    """The model: whose each slot is, how often it is pinned, what is being loaded, and who was used last."""

    COUNT = 4

    def __init__(self) -> None:
        super().__init__()
        self.slots = Slots(self.COUNT, PREFIX)
        self.of: dict[str, int] = {}
        self.pins: dict[str, int] = {}
        self.loading: set[int] = set()
        self.hot: set[int] = set()
        self.order: list[str] = []

    def touched(self, *names):
        self.order = [name for name in self.order if name not in names] + list(names)

    @rule(name=st.sampled_from(NAMES))
    def acquire(self, name):
        uses, epochs = self.slots.uses.copy(), self.slots.epoch.copy()
        idle = [n for n in self.order if not self.pins.get(n) and self.of[n] not in self.loading]
        if name not in self.of and len(self.of) == self.COUNT and not idle:
            with pytest.raises(Overloaded):
                acquire(self.slots, name)
            return
        [slot] = acquire(self.slots, name)
        assert 1 <= slot <= self.COUNT
        if name in self.of:
            assert slot == self.of[name]
            assert (self.slots.uses == uses).all()
            assert (self.slots.epoch == epochs).all()
        else:
            if len(self.of) == self.COUNT:
                assert slot == self.of.pop(idle[0])
                self.order.remove(idle[0])
                self.hot.discard(slot)
                epochs[slot] += 1
            uses[slot] += 1
            assert (self.slots.uses == uses).all()
            assert (self.slots.epoch == epochs).all()
            self.of[name] = slot
        self.touched(name)

    @precondition(lambda self: self.of)
    @rule(data=st.data())
    def pin(self, data):
        names = data.draw(st.lists(st.sampled_from(sorted(self.of)), min_size=1, unique=True))
        self.slots.pin(np.array([self.of[name] for name in names]))
        for name in names:
            self.pins[name] = self.pins.get(name, 0) + 1
        # All of one block are used at once; which goes first of them is open, so give them an order by hand.
        for name in names:
            self.slots.touch(self.of[name])
        self.touched(*names)

    @precondition(lambda self: any(self.pins.values()))
    @rule(data=st.data())
    def unpin(self, data):
        name = data.draw(st.sampled_from(sorted(name for name, count in self.pins.items() if count)))
        self.slots.unpin(np.array([self.of[name]]))
        self.pins[name] -= 1

    @rule()
    def load(self):
        wanted = {self.of[name] for name, count in self.pins.items() if count} - self.loading - self.hot
        found = self.slots.to_load().tolist()
        assert set(found) == wanted
        assert len(set(found)) == len(found)
        self.loading |= set(found)

    @precondition(lambda self: self.loading)
    @rule(data=st.data())
    def loaded(self, data):
        slot = data.draw(st.sampled_from(sorted(self.loading)))
        head = np.zeros(1, record.HEADER)
        head["position"] = slot
        self.slots.install(np.array([slot]), head, 1)
        self.loading.discard(slot)
        self.hot.add(slot)

    @precondition(lambda self: self.hot)
    @rule(data=st.data())
    def give_up(self, data):
        slot = data.draw(st.sampled_from(sorted(self.hot)))
        epoch = int(self.slots.epoch[slot])
        self.slots.give_up(np.array([slot]))
        assert self.slots.epoch[slot] == epoch + 1
        self.hot.discard(slot)

    @invariant()
    def the_columns_are_the_models(self):
        assert len(self.slots) == len(self.of)
        assert len(set(self.of.values())) == len(self.of)
        for name, slot in self.of.items():
            assert self.slots.identity(slot) == identity(name)
            assert self.slots.pins[slot] == self.pins.get(name, 0)
        for slot in range(1, self.COUNT + 1):
            assert self.slots.ready[slot] == (slot in self.hot)
            status = HOT if slot in self.hot else LOADING if slot in self.loading else COLD
            assert self.slots.status[slot] == status


def test_the_slots_obey_their_model():
    run_state_machine_as_test(Sessions, settings=settings(max_examples=150, stateful_step_count=40, deadline=None))
