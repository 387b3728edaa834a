"""Who computes how many tokens in the next step, and in which pages.

There are no phases: each request has tokens that are known, its guesses included, and of these some are computed. A
step spends a budget so that the second catches up with the first. A long prompt, a part of one, the single token of a
running text, what follows a shared beginning and guesses to verify are all the same case (after vLLM's scheduler).
"""

from collections import deque
from dataclasses import dataclass

from mla_edu.cache.pages import PageTable
from mla_edu.cache.prefix import PrefixAllocator
from mla_edu.serving.request import Event, Request


@dataclass(frozen=True)
class Work:
    """A request's part of a step.

    Attributes:
        request: which one.
        count: tokens to compute, the next of ``request.tokens`` and then of ``request.drafts``.
        is_last: whether all that is known is then computed, so that new tokens can be chosen.
    """

    request: Request
    count: int
    is_last: bool


class Scheduler:
    """The queues of an engine, and the pages of their requests.

    Args:
        table: empty; a row for each request that runs at a time.
        allocator: of the table.
        max_batch_tokens: that one step computes at most.
        share: whether full pages are named, and found again by requests with the same beginning.

    Attributes:
        waiting: requests without pages, in the order in which they will get some.
        running: requests with pages, in the order in which they got them.
    """

    def __init__(self, table: PageTable, allocator: PrefixAllocator, max_batch_tokens: int, share: bool = True):
        self.table = table
        self.allocator = allocator
        self.max_batch_tokens = max_batch_tokens
        self.share = share
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self._rows = list(reversed(range(table.batch_size)))

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises:
            ValueError: it could never have all the pages that it may need.
        """
        longest = len(request.prompt) + request.params.max_new_tokens - 1
        if longest > self.table.max_seq_len:
            raise ValueError(
                f"prompt_tokens has {len(request.prompt)} tokens, and max_new_tokens is "
                f"{request.params.max_new_tokens}; expected at most the {self.table.max_seq_len} tokens that all pages "
                f"hold, {longest} would have to be kept"
            )
        self.waiting.append(request)

    def cancel(self, request: Request) -> None:
        """Take a request out, and its pages back; nothing for one that is over."""
        if request.is_over:
            return
        if request.row is None:
            self.waiting.remove(request)
        else:
            self._leave(request)
        request.state = "cancelled"

    def num_computed(self, request: Request) -> int:
        """Tokens of a request that are in its pages."""
        return 0 if request.row is None else self.table.lengths[request.row]

    def plan(self) -> tuple[list[Work], list[Event]]:
        """The next step's work, the oldest requests first; and who was admitted or preempted for it."""
        work: list[Work] = []
        events: list[Event] = []
        budget, promised = self.max_batch_tokens, 0
        for request in list(self.running):
            if request.row is None or not budget:
                continue
            count, pages = self._next(request, budget)
            if request.drafts and pages > self.allocator.num_free - promised:
                request.forget_drafts()
                count, pages = self._next(request, budget)
            while pages and pages > self.allocator.num_free - promised and request.row is not None:
                victim = self.running[-1]
                self._preempt(victim)
                events.append(Event("preempted", victim))
            if request.row is not None:
                work.append(self._work(request, count))
                budget, promised = budget - count, promised + pages
        while self.waiting and self._rows and budget and not any(event.kind == "preempted" for event in events):
            request = self.waiting[0]
            found = self._admit(request)
            count, pages = self._next(request, budget)
            if pages > self.allocator.num_free - promised:
                self._preempt(request)
                break
            events.append(Event("admitted", request, count=found))
            work.append(self._work(request, count))
            budget, promised = budget - count, promised + pages
        return work, events

    def advance(self, request: Request, chosen: list[int]) -> list[int]:
        """Take in what a step has computed for a request, and the tokens chosen then; wrong guesses are forgotten.

        Returns:
            the tokens that were added to the request.
        """
        assert request.row is not None
        num_right = len(request.tokens) + len(chosen) - 1  # tokens computed behind nothing but tokens that stay
        added = request.accept(chosen)
        if chosen:
            if request.drafts:
                request.forget_drafts()
            stays = min(num_right, len(request.tokens))
            if self.num_computed(request) > stays:
                self.table.truncate(stays, [request.row])
        if self.share and self.num_computed(request) // self.table.page_size > request.num_named:
            self._name(request)
        if request.is_over:
            self._leave(request)
        return added

    def _next(self, request: Request, budget: int) -> tuple[int, int]:
        """How many tokens a request computes next, and the pages that it lacks for them; guesses past them are cut."""
        assert request.row is not None
        missing = len(request.tokens) - self.num_computed(request)
        if missing + len(request.drafts) > budget:
            request.forget_drafts(keep=max(budget - missing, 0))
        count = min(missing + len(request.drafts), budget)
        return count, self.table.num_missing_pages(request.row, count)

    def _work(self, request: Request, count: int) -> Work:
        known = len(request.tokens) + len(request.drafts)
        return Work(request, count, self.num_computed(request) + count == known)

    def _admit(self, request: Request) -> int:
        """Give a waiting request a row, and the pages of its beginning that are kept; returns their tokens."""
        self.waiting.remove(request)
        self.running.append(request)
        request.row, request.state = self._rows.pop(), "running"
        if self.share:
            request.prefixes = self.allocator.prefixes(request.tokens, request.prefixes)
            # Never all of it: the last token has to be computed, since what follows is read off there.
            pages = self.allocator.find(request.prefixes[: (len(request.tokens) - 1) // self.table.page_size])
            self.table.adopt(request.row, pages)
            request.num_named = len(pages)
        return self.num_computed(request)

    def _name(self, request: Request) -> None:
        """Name the pages that have become full of tokens which stay."""
        assert request.row is not None
        request.prefixes = self.allocator.prefixes(request.tokens, request.prefixes)
        full = min(self.num_computed(request) // self.table.page_size, len(request.prefixes))
        for place in range(request.num_named, full):
            self.allocator.name(self.table.pages_of[request.row][place], request.prefixes[place])
        request.num_named = max(request.num_named, full)

    def _preempt(self, request: Request) -> None:
        """Take the pages of a request; it waits before all others, to be computed again."""
        self._leave(request)
        request.state = "waiting"
        self.waiting.appendleft(request)

    def _leave(self, request: Request) -> None:
        assert request.row is not None
        self.table.free(request.row)
        self._rows.append(request.row)
        self.running.remove(request)
        request.row = None
