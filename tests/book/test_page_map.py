"""What an engine did, recorded: every frame is the engine as it was, and the picture shows the frame."""

import re

import pytest

from mla_edu.book.page_map import example_run, page_map, record
from mla_edu.serving import Engine, SamplingParams
from tiny_engines import model_of, plain

BEGINNING = [3, 1, 4, 1, 5, 9]


def engine(num_pages=6, budget=5):
    return Engine(model_of("mla"), num_pages=num_pages, page_size=3, max_batch_tokens=budget)


def test_frames_are_what_the_engine_was():
    arrivals = [(1, [*BEGINNING, 2], 6), (2, [*BEGINNING, 7], 5), (4, [8, 0, 6, 10, 2], 3)]
    frames, requests = record(engine(), arrivals)
    other = engine()
    submitted = []
    for step, frame in enumerate(frames):
        if step:
            for _, prompt, count in [arrival for arrival in arrivals if arrival[0] == step]:
                submitted.append(other.submit(prompt, SamplingParams(max_new_tokens=count)))
            other.step()
        allocator, table = other.scheduler.allocator, other.table
        assert [page.state for page in frame.pages] == [allocator.state(page) for page in range(6)]
        assert [len(page.names) for page in frame.pages if page.state == "held"] == [
            users for users in allocator.users if users
        ]
        for request, now in zip(submitted, frame.requests, strict=True):
            assert now.state == request.state
            assert (now.known, now.written) == (len(request.tokens), len(request.output))
            assert now.computed == other.scheduler.num_computed(request)
            assert list(now.pages) == ([] if request.row is None else table.pages_of[request.row])
            for place, page in enumerate(now.pages):
                assert now.name in frame.pages[page].names
                assert frame.pages[page].filled == min(3, now.computed - 3 * place)
    assert other.is_idle
    for request, (_, prompt, count) in zip(requests, arrivals, strict=True):
        assert request.output == plain("mla", tuple(prompt), count)


def test_idle_pages_bear_the_letters_of_those_whose_text_they_hold():
    frames, _ = record(engine(), [(1, [*BEGINNING, 2], 2), (5, [*BEGINNING[:3], 8], 1)])
    idle = [(page.names, page.filled) for page in frames[-1].pages if page.state == "idle"]
    assert sorted(idle) == [(("A",), 3), (("A", "B"), 3)]
    assert all(page.names == () for page in frames[-1].pages if page.state == "free")


def test_example_has_everything_that_can_happen():
    frames = example_run()
    said = "; ".join(event for frame in frames for event in frame.events)
    for part in (
        "arrives",
        "8 tokens found",
        "preempted",
        "evicted",
        "finished",
        "C: 6 tokens computed;",
        "C: 4 tokens computed, 1 written",
    ):
        assert part in said
    assert any(page.state == "held" and len(page.names) > 1 for frame in frames for page in frame.pages)
    assert {request.state for request in frames[-1].requests} == {"finished"}
    assert all(sum(request.spent for request in frame.requests) <= 8 for frame in frames)


def test_eviction_is_said_where_a_name_is_lost():
    frames, _ = record(engine(num_pages=3), [(1, [*BEGINNING, 2], 2), (5, [8, 0, 6, 10], 3)])
    evicted = [event for frame in frames for event in frame.events if "evicted" in event]
    assert len(evicted) == 1
    page = int(re.search(r"\d+", evicted[0])[0])
    (when,) = [i for i, frame in enumerate(frames) if evicted[0] in frame.events]
    assert frames[when - 1].pages[page].state == "idle"
    assert frames[when].pages[page].names == ("B",)


def test_picture_has_a_box_for_each_page_and_the_letters_in_them():
    frames, _ = record(engine(), [(1, [*BEGINNING, 2], 2), (2, [*BEGINNING, 7], 2)])
    picture = page_map(frames, "two requests that share two pages")
    assert 'aria-label="two requests that share two pages"' in picture.svg
    texts = re.findall(r">([^<>]+)</text>", picture.svg)
    letters = [text for text in texts if re.fullmatch("[AaBb]{1,2}", text)]
    assert letters == ["".join(p.names).lower() if p.state == "idle" else "".join(p.names)
                       for frame in frames[1:] for p in frame.pages if p.names]  # fmt: skip
    assert "A 5" in texts


def test_bad_input_is_refused():
    busy = engine()
    busy.submit([1, 2])
    with pytest.raises(ValueError, match="engine is at work; expected an idle one"):
        record(busy, [])
    with pytest.raises(ValueError, match="the step of an arrival is 0"):
        record(engine(), [(0, [1], 1)])
    with pytest.raises(ValueError, match="first is 9; expected an integer from 0 to 2"):
        page_map(record(engine(), [(1, [1], 2)])[0], "a picture", first=9)
