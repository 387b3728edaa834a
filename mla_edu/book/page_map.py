"""What an engine does, step by step: recorded, and drawn as a map of its pages."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mla_edu.book.figures import KEY, NEUTRAL, Picture, figure, show
from mla_edu.validation import check_integer

if TYPE_CHECKING:
    from mla_edu.serving import Engine, Event, Request

Arrival = tuple[int, Sequence[int], int]  # the step it comes before, its prompt, how many tokens it wants


@dataclass(frozen=True)
class PageNow:
    """One page after a step.

    Attributes:
        state: ``"free"``, ``"idle"`` or ``"held"``.
        names: of the requests that hold it; of an idle one, those whose text is in it.
        filled: tokens in it.
    """

    state: Literal["free", "idle", "held"]
    names: tuple[str, ...]
    filled: int


@dataclass(frozen=True)
class RequestNow:
    """One request after a step.

    Attributes:
        name: its letter.
        state: as ``Request.state``.
        computed: of its tokens, those in its pages.
        known: its tokens, those chosen so far included.
        written: tokens chosen so far.
        spent: tokens that the step computed for it.
        pages: that it holds, in the order of its tokens.
    """

    name: str
    state: str
    computed: int
    known: int
    written: int
    spent: int
    pages: tuple[int, ...]


@dataclass(frozen=True)
class Frame:
    """An engine after a step.

    Attributes:
        events: what the step did, a sentence each without its full stop.
        pages: all of the pool.
        requests: all that have come, in their order.
    """

    events: tuple[str, ...]
    pages: tuple[PageNow, ...]
    requests: tuple[RequestNow, ...]


def letter(request: "Request") -> str:
    """A to Z for the first 26 requests of an engine, then R26 and so on."""
    return chr(ord("A") + request.number) if request.number < 26 else f"R{request.number}"


def record(engine: "Engine", arrivals: Iterable[Arrival]) -> tuple[list[Frame], list["Request"]]:
    """Run an engine until all is done, and keep what it looked like before the first step and after each.

    Args:
        engine: idle.
        arrivals: of each request the step before which it comes, counted from 1, its prompt, how many tokens follow.

    Returns:
        the frames, and the requests in the order of their arrival.

    Raises:
        ValueError: the engine is not idle, a step is not positive, or a request is refused.
    """
    from mla_edu.serving import SamplingParams

    if not engine.is_idle:
        raise ValueError("engine is at work; expected an idle one")
    coming = sorted(arrivals, key=lambda arrival: arrival[0])
    for before, _, _ in coming:
        check_integer("the step of an arrival", before)
    requests: list[Request] = []
    frames = [Frame(("Nothing has run yet",), _pages(engine, []), ())]
    while coming or not engine.is_idle:
        came = []
        while coming and coming[0][0] <= len(frames):
            _, prompt, count = coming.pop(0)
            requests.append(engine.submit(prompt, SamplingParams(max_new_tokens=count)))
            came.append(f"{letter(requests[-1])} arrives with {_tokens(len(prompt))}")
        kept = engine.scheduler.allocator.named()
        events = engine.step()
        still = engine.scheduler.allocator.named()
        evicted = [f"page {page} is evicted" for page, prefix in kept.items() if still.get(page) is not prefix]
        said = [*came, *_sentences(events), *evicted]
        spent = {event.request: event.count for event in events if event.kind == "computed"}
        now = tuple(_request(engine, request, spent.get(request, 0)) for request in requests)
        frames.append(Frame(tuple(said) or ("Nothing to do",), _pages(engine, requests), now))
    return frames, requests


def example_run() -> list[Frame]:
    """Five requests in ten pages of four tokens, eight tokens a step: chunks, shared pages, eviction, preemption."""
    import torch

    from mla_edu.models import Decoder, ModelConfig
    from mla_edu.serving import Engine
    from mla_edu.testing import randomize

    mla = {"num_attention_heads": 3, "q_lora_rank": None, "kv_lora_rank": 12}
    widths = {"qk_nope_head_dim": 5, "qk_rope_head_dim": 4, "v_head_dim": 6}
    sizes = {"vocab_size": 40, "hidden_size": 24, "intermediate_size": 32, "layers": ["mla", "mla"]}
    model = Decoder(ModelConfig.model_validate(sizes | {"mla": mla | widths}), dtype=torch.float64)
    randomize(model, seed=2).requires_grad_(False)
    system = [7, 3, 11, 29, 5, 17, 2, 31]
    arrivals: list[Arrival] = [
        (1, [*system, 9], 8),
        (2, [*system, 4, 6], 6),
        (3, list(range(12, 28)), 4),
        (5, [*system, 9, 1, 33], 5),
        (12, [21, 8, 38, 14, 19, 25, 30, 2, 6], 3),
    ]
    return record(Engine(model, num_pages=10, page_size=4, max_batch_tokens=8), arrivals)[0]


def page_map(frames: Sequence[Frame], alt: str, *, first: int = 1) -> Picture:
    """The pages after each step: a row for a step, a column for a page, in it the letters of those who hold it.

    A free page is empty, an idle one grey with small letters of those whose text is in it, a shared one darker. At the
    right of each row stands how many tokens the step computed, and for whom.

    Args:
        frames: from ``record``.
        alt: what the picture shows, for readers who do not see it.
        first: number of the first step drawn.

    Raises:
        ValueError: ``first`` is no step of the run.
    """
    check_integer("first", first, 0, len(frames) - 1)
    shown, num_pages = frames[first:], len(frames[0].pages)
    fig, ax = figure(4.3, 0.62 + 0.27 * len(shown))
    for y, frame in enumerate(shown):
        for x, page in enumerate(frame.pages):
            colour, strength = (NEUTRAL, 0.22) if page.state == "idle" else (KEY, 0.55 if len(page.names) > 1 else 0.28)
            face = "none" if page.state == "free" else (colour, strength)
            ax.add_patch(_box(x, y, face))
            text = "".join(page.names)
            size = 10 if len(text) < 3 else 9
            ax.text(x, y, text.lower() if page.state == "idle" else text, ha="center", va="center", fontsize=size)
        spent = ", ".join(f"{each.name} {each.spent}" for each in frame.requests if each.spent)
        ax.text(num_pages - 0.3, y, spent, va="center")
    ax.set(xlim=(-0.55, num_pages + 3.2), ylim=(len(shown) - 0.4, -0.6))
    ax.set_xticks(range(num_pages))
    ax.set_yticks(range(len(shown)), [str(first + y) for y in range(len(shown))])
    ax.set_xlabel("page", x=(num_pages + 0.1) / (2 * (num_pages + 3.75)))
    ax.text(num_pages - 0.3, len(shown) - 0.05, "computed", va="center")
    ax.set_ylabel("after step")
    ax.grid(visible=False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return show(fig, alt)


def _box(x: int, y: int, face: object) -> object:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.44, y - 0.42), 0.88, 0.84, facecolor=face, edgecolor=NEUTRAL, linewidth=0.8)


def _pages(engine: "Engine", requests: Sequence["Request"]) -> tuple[PageNow, ...]:
    table, allocator = engine.table, engine.scheduler.allocator
    holders: dict[int, list[str]] = {}
    filled: dict[int, int] = {}
    for request in requests:
        for place, page in enumerate([] if request.row is None else table.pages_of[request.row]):
            holders.setdefault(page, []).append(letter(request))
            filled[page] = min(engine.scheduler.num_computed(request) - place * table.page_size, table.page_size)
    named, pages = allocator.named(), []
    for page in range(allocator.num_pages):
        if page in holders:
            pages.append(PageNow("held", tuple(holders[page]), filled[page]))
        elif page in named:
            owners = tuple(letter(request) for request in requests if named[page] in request.prefixes)
            pages.append(PageNow("idle", owners, table.page_size))
        else:
            pages.append(PageNow("free", (), 0))
    return tuple(pages)


def _request(engine: "Engine", request: "Request", spent: int) -> RequestNow:
    pages = () if request.row is None else tuple(engine.table.pages_of[request.row])
    computed = engine.scheduler.num_computed(request)
    return RequestNow(letter(request), request.state, computed, len(request.tokens), len(request.output), spent, pages)


def _tokens(count: int) -> str:
    return f"{count} token{'' if count == 1 else 's'}"


def _sentences(events: Sequence["Event"]) -> Iterator[str]:
    written = {event.request: len(event.tokens) for event in events if event.kind == "tokens"}
    for event in events:
        name = letter(event.request)
        if event.kind == "admitted":
            yield f"{name} is admitted" + (f", {_tokens(event.count)} found in kept pages" if event.count else "")
        elif event.kind == "computed":
            more = f", {written[event.request]} written" if event.request in written else ""
            yield f"{name}: {_tokens(event.count)} computed{more}"
        elif event.kind == "preempted":
            yield f"{name} is preempted and waits"
        elif event.kind == "finished":
            yield f"{name} has finished"
