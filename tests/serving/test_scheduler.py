"""Pages and requests without a model: every slot holds the tokens that its contents stand for.

After each step every page is free, idle or held, and held by as many rows as the allocator counts; no page that is
free or idle stands in a row; named pages are full and hold what their names say; what a request would read is its own
beginning. What it writes is what a plain loop writes.
"""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_edu.cache import PageTable, PrefixAllocator
from mla_edu.serving.request import Request, SamplingParams
from mla_edu.serving.schedule import Scheduler


def next_token(tokens):
    """What a model would write, reckoned from all tokens so far; few values, so that texts meet."""
    return (sum(tokens) * 7 + len(tokens) + tokens[-1]) % 3


class Oracle:
    """Drives a scheduler as an engine does; the "cache" is a tuple of tokens for each slot."""

    def __init__(self, num_pages, page_size, rows, budget, share, lookahead, seed):
        self.allocator = PrefixAllocator(num_pages, page_size, lookahead)
        self.table = PageTable(num_pages, page_size, rows, allocator=self.allocator)
        self.scheduler = Scheduler(self.table, self.allocator, budget, share)
        self.memory, self.ahead = {}, {}
        self.names = {}
        self.random = random.Random(seed)
        self.preempted = self.found = self.right = 0
        self.requests = []

    def submit(self, prompt, count, stop=()):
        params = SamplingParams(max_new_tokens=count, stop_tokens=stop)
        request = Request(len(self.requests), tuple(prompt), params, list(prompt))
        self.scheduler.submit(request)
        self.requests.append(request)
        return request

    def slot(self, row, position):
        page = int(self.table.block_table[row, position // self.allocator.page_size])
        return page, position % self.allocator.page_size

    def step(self, max_drafts=3):
        work, events = self.scheduler.plan()
        self.preempted += sum(event.kind == "preempted" for event in events)
        self.found += sum(event.count for event in events if event.kind == "admitted")
        assert sum(each.count for each in work) <= self.scheduler.max_batch_tokens
        assert all(each.count > 0 for each in work)
        chosen = {}
        with self.table.steps([(each.count, [each.request.row]) for each in work]):
            for each in work:
                row, done = each.request.row, self.table.lengths[each.request.row]
                known = each.request.tokens + each.request.drafts
                for position in range(done, done + each.count):
                    self.memory[self.slot(row, position)] = tuple(known[: position + 1])
                self.check_reads(row, known[: done + each.count])
                if each.is_last:
                    chosen[each.request] = self.verify(each.request)
                    known = each.request.tokens + chosen[each.request]
                for position in range(done, done + each.count):  # a drafting layer, once the next token is known
                    self.ahead[self.slot(row, position)] = tuple(known[: position + 2])
        for each in work:
            self.scheduler.advance(each.request, chosen.get(each.request, []))
        for request in chosen:
            if not request.is_over:
                self.guess(request, self.random.randint(0, max_drafts))
        self.check()

    def verify(self, request):
        tokens, right = list(request.tokens), []
        for draft in request.drafts:
            right.append(next_token(tokens))
            tokens.append(right[-1])
            if draft != right[-1]:
                return right
            self.right += 1
        return [*right, next_token(tokens)]

    def guess(self, request, count):
        tokens = list(request.tokens)
        for _ in range(min(count, request.num_left - 1)):
            tokens.append(next_token(tokens) if self.random.random() < 0.7 else self.random.randint(0, 2))
        request.drafts = tokens[len(request.tokens) :]

    def check_reads(self, row, tokens):
        for position in range(len(tokens)):
            assert self.memory[self.slot(row, position)] == tuple(tokens[: position + 1])

    def check(self):
        allocator, table = self.allocator, self.table
        held = [page for pages in table.pages_of for page in pages]
        assert allocator.users == [held.count(page) for page in range(allocator.num_pages)]
        states = [allocator.state(page) for page in range(allocator.num_pages)]
        assert all((states[page] == "held") == (page in held) for page in range(allocator.num_pages))
        assert states.count("free") + states.count("idle") == allocator.num_free
        assert states.count("idle") == allocator.num_idle
        assert states.count("held") == allocator.num_held
        rows = [request.row for request in self.scheduler.running]
        assert len(set(rows)) == len(rows)
        for row, pages in enumerate(table.pages_of):
            assert table.lengths[row] == 0 or row in rows
            assert len(pages) == -(-table.lengths[row] // allocator.page_size)
            assert table.block_table[row].tolist() == pages + [-1] * (table.block_table.shape[1] - len(pages))
        for request in self.scheduler.running:
            done = self.scheduler.num_computed(request)
            self.check_reads(request.row, request.tokens[:done])
            if self.allocator.lookahead:
                for position in range(done):
                    assert self.ahead[self.slot(request.row, position)] == tuple(request.tokens[: position + 2])
        for page, prefix in allocator.named().items():
            assert self.names.setdefault((page, prefix), prefix.tokens) == prefix.tokens
            tokens, one = [], prefix
            while one is not None:
                tokens = [*one.tokens[: allocator.page_size], *tokens]
                one = one.parent
            for place in range(allocator.page_size):
                end = len(tokens) - allocator.page_size + place + 1
                assert self.memory[page, place] == tuple(tokens[:end])


def expected(request):
    tokens = list(request.prompt)
    while len(tokens) < len(request.prompt) + request.params.max_new_tokens:
        token = next_token(tokens)
        if token in request.params.stop_tokens:
            break
        tokens.append(token)
    return tokens[len(request.prompt) :]


@st.composite
def plays(draw):
    page_size = draw(st.sampled_from((1, 1, 2, 2, 3, 5)))
    num_pages = draw(st.one_of(st.integers(1, 6), st.integers(6, 20)))
    setting = {
        "num_pages": num_pages,
        "page_size": page_size,
        "rows": draw(st.integers(1, 5)),
        "budget": draw(st.sampled_from((1, 2, 3, 5, 9, 30))),
        "share": draw(st.sampled_from((True, True, True, False))),
        "lookahead": draw(st.integers(0, 1)),
        "seed": draw(st.integers(0, 999)),
    }
    beginning = draw(st.lists(st.integers(0, 2), min_size=1, max_size=12))
    submit = st.tuples(
        st.just("submit"),
        st.integers(0, len(beginning)),
        st.lists(st.integers(0, 2), max_size=3),
        st.integers(1, 8),
        st.sampled_from(((), (), (), (0,), (1, 2))),
    )
    cancel = st.tuples(st.just("cancel"), st.integers(0, 9))
    again = st.tuples(st.just("again"), st.integers(0, 9), st.integers(0, 9))
    steps = st.tuples(st.just("step"), st.integers(1, 4))
    moves = draw(st.lists(st.one_of(submit, steps, again, cancel, steps), min_size=1, max_size=25))
    return setting, beginning, moves


def play(setting, beginning, moves):
    oracle = Oracle(**setting)
    for move in moves:
        if move[0] in ("submit", "again"):
            if move[0] == "submit":
                _, shared, own, count, stop = move
                prompt = beginning[:shared] + own or [1]
            elif oracle.requests:  # a text, or the beginning of one, that was there before
                text = oracle.requests[move[1] % len(oracle.requests)].tokens
                prompt, count, stop = text[: len(text) - move[2] % len(text)], 3, ()
            else:
                continue
            if len(prompt) + count - 1 > setting["num_pages"] * setting["page_size"]:
                with pytest.raises(ValueError, match="tokens that all pages hold"):
                    oracle.submit(prompt, count, stop)
            else:
                oracle.submit(prompt, count, stop)
        elif move[0] == "cancel":
            if oracle.requests:
                oracle.scheduler.cancel(oracle.requests[move[1] % len(oracle.requests)])
        else:
            for _ in range(move[1]):
                oracle.step()
        oracle.check()
    for _ in range(3000):
        if not oracle.scheduler.waiting and not oracle.scheduler.running:
            break
        oracle.step()
    assert oracle.allocator.num_free == setting["num_pages"]
    for request in oracle.requests:
        if request.state == "cancelled":
            assert expected(request)[: len(request.output)] == request.output
        else:
            assert (request.state, request.output) == ("finished", expected(request))
    return oracle


@settings(max_examples=200, deadline=None)
@given(plays())
def test_pages_are_conserved_and_hold_what_is_read(a_play):
    play(*a_play)


def test_a_request_that_loses_its_pages_waits_before_all_others():
    oracle = Oracle(num_pages=4, page_size=2, rows=2, budget=20, share=False, lookahead=0, seed=0)
    first, second, third = (oracle.submit([1, 2, 0], 4) for _ in range(3))
    while not oracle.preempted:
        oracle.step(max_drafts=0)
    assert (first.state, second.state, third.state) == ("running", "waiting", "waiting")
    assert list(oracle.scheduler.waiting) == [second, third]


def test_pages_of_nobody_go_the_last_page_of_the_oldest_text_first():
    oracle = Oracle(num_pages=6, page_size=2, rows=3, budget=20, share=True, lookahead=0, seed=0)
    old, new = [0, 1, 2, 0, 1], [2, 2, 1, 1, 0]
    for text in (old, new):
        oracle.submit(text, 1)
        oracle.step(max_drafts=0)
    find, prefixes = oracle.allocator.find, oracle.allocator.prefixes
    assert [len(find(prefixes(text))) for text in (old, new)] == [2, 2]
    held = oracle.allocator.allocate(3)  # two were free
    assert [len(find(prefixes(text))) for text in (old, new)] == [1, 2]
    held += oracle.allocator.allocate(2)
    assert [len(find(prefixes(text))) for text in (old, new)] == [0, 1]
    oracle.allocator.free(held)
