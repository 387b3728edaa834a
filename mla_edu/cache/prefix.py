"""Pages that are found again by the text they hold: requests with the same beginning share them.

A full page is named by its tokens and all before them (Zheng et al. 2024, arXiv:2312.07104, with a tree; vLLM with a
chain of hashes, as here). Names are compared token by token, so that two texts with one hash are still two texts.
"""

from collections import OrderedDict
from collections.abc import Sequence

from mla_edu.cache.pages import PageAllocator
from mla_edu.cache.table import check_sizes
from mla_edu.validation import check_integer


class Prefix:
    """The beginning of a text in full pages: the last page's tokens, behind those of the pages before.

    Args:
        parent: the pages before; None for the first page.
        tokens: of the last page, and those after it that its contents depend on.
    """

    __slots__ = ("_hash", "parent", "tokens")

    def __init__(self, parent: "Prefix | None", tokens: Sequence[int]):
        self.parent = parent
        self.tokens = tuple(tokens)
        self._hash: int = hash((None if parent is None else parent._hash, self.tokens))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        one: Prefix | None = self
        while one is not other:
            if not isinstance(one, Prefix) or not isinstance(other, Prefix) or one.tokens != other.tokens:
                return False
            one, other = one.parent, other.parent
        return True


class PrefixAllocator(PageAllocator):
    """A pool whose full pages can be named; nobody's named pages are kept until others are needed.

    A page is one of three: free, idle (named, held by no sequence) or held. Idle pages are handed out when no free
    one is left, the least recently held first, and of one sequence its last page first.

    Args:
        num_pages: in the pool.
        page_size: tokens in a page.
        lookahead: tokens past its end that a page's contents depend on: 1 where a layer that drafts has its latents in
            it, which come from the next token too.

    Raises:
        ValueError: a size is not positive.
    """

    def __init__(self, num_pages: int, page_size: int, lookahead: int = 0):
        check_sizes(num_pages=num_pages, page_size=page_size)
        super().__init__(num_pages)
        self.page_size = page_size
        self.lookahead = check_integer("lookahead", lookahead, lowest=0)
        self._page_of: dict[Prefix, int] = {}
        self._prefix_of: dict[int, Prefix] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def num_free(self) -> int:
        """Pages that can be handed out, the idle ones included."""
        return len(self._free) + len(self._idle)

    @property
    def num_idle(self) -> int:
        """Named pages that no sequence holds."""
        return len(self._idle)

    def state(self, page: int) -> str:
        """``"free"``, ``"idle"`` or ``"held"``."""
        return "held" if self.users[page] else "idle" if page in self._idle else "free"

    def named(self) -> dict[int, Prefix]:
        """The pages whose contents are known, and what they hold."""
        return dict(self._prefix_of)

    def prefixes(self, tokens: Sequence[int], known: Sequence[Prefix] = ()) -> list[Prefix]:
        """The names of a text's full pages, as far as their tokens and those they look ahead to are there.

        Args:
            tokens: of the text.
            known: the first names of the same text, which need not be made again.
        """
        names = list(known)
        while (end := (len(names) + 1) * self.page_size + self.lookahead) <= len(tokens):
            names.append(Prefix(names[-1] if names else None, tokens[len(names) * self.page_size : end]))
        return names

    def find(self, prefixes: Sequence[Prefix]) -> list[int]:
        """The pages that hold the beginning of a text: those of its names, up to the first that is not here."""
        pages = []
        for prefix in prefixes:
            if prefix not in self._page_of:
                break
            pages.append(self._page_of[prefix])
        return pages

    def name(self, page: int, prefix: Prefix) -> None:
        """Say what a held, full page holds; where another page is known for it, that one stays known.

        Raises:
            ValueError: no sequence holds the page.
        """
        self._check([page], self._is_held)
        if prefix not in self._page_of and page not in self._prefix_of:
            self._page_of[prefix] = page
            self._prefix_of[page] = prefix

    def share(self, pages: Sequence[int]) -> None:
        """Let one more sequence hold pages that are held or idle.

        Raises:
            ValueError: one of them is free, or named twice; none is shared.
        """
        super().share(pages)
        for page in pages:
            self._idle.pop(page, None)

    def _take(self) -> int:
        if self._free:
            return super()._take()
        page, _ = self._idle.popitem(last=False)
        del self._page_of[self._prefix_of.pop(page)]
        return page

    def _put_back(self, page: int) -> None:
        if page in self._prefix_of:
            self._idle[page] = None
        else:
            super()._put_back(page)

    def _is_there(self, page: int) -> bool:
        return page in self._idle or self._is_held(page)
