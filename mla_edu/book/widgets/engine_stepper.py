"""A recorded run of an engine, step by step: what each step did, the map of the pages, the block tables.

``engine_stepper.js`` counts the same in the browser, with a function of the same name.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import traitlets

from mla_edu.book.page_map import Frame, example_run
from mla_edu.book.widgets.parts import Number, Widget, source
from mla_edu.validation import check_integer

MOST_STEPS = 499


def quantities(frames: Sequence[Frame], step: int) -> dict[str, int]:
    """What stands in the frame of a step.

    Returns:
        tokens ``computed`` by the step; pages ``held``, ``idle`` and ``free``; pages ``saved``, which would be held too
        if nothing were shared; requests that ``running`` and ``waiting``; tokens ``written`` so far.
    """
    pages, requests = frames[step].pages, frames[step].requests
    counted = {state: sum(page.state == state for page in pages) for state in ("held", "idle", "free")}
    return {
        "computed": sum(request.spent for request in requests),
        **counted,
        "saved": sum(len(page.names) - 1 for page in pages if page.state == "held"),
        "running": sum(request.state == "running" for request in requests),
        "waiting": sum(request.state == "waiting" for request in requests),
        "written": sum(request.written for request in requests),
    }


class EngineStepper(Widget):
    """An engine's pages and requests after each step of a recorded run."""

    _esm = source("engine_stepper.js")
    _css = source("engine_stepper.css")

    step = Number(0, MOST_STEPS)

    def __init__(self, frames: Sequence[Frame] | None = None, step: int = 0):
        """A view with these settings.

        Args:
            frames: from ``mla_edu.book.page_map.record``; None for ``example_run()``.
            step: that is shown, 0 before the first.

        Raises:
            ValueError: there is no frame, there are more than 500, or ``step`` is none of them.
        """
        self.frames = example_run() if frames is None else list(frames)
        check_integer("the number of frames", len(self.frames), 1, MOST_STEPS + 1)
        super().__init__({"frames": [asdict(frame) for frame in self.frames]}, step=step)

    @traitlets.validate("step")
    def _is_there(self, proposal: dict[str, Any]) -> int:
        return check_integer("step", proposal["value"], 0, len(self.frames) - 1)

    @property
    def quantities(self) -> dict[str, int]:
        """``quantities`` of the present step."""
        return quantities(self.frames, self.step)

    def text(self) -> str:
        """What the step did, and who holds which pages."""
        frame, found = self.frames[self.step], self.quantities
        tables = [
            f"{each.name} {each.state}, {each.computed} of {each.known} tokens computed, pages {list(each.pages)}"
            for each in frame.requests
        ]
        return "\n".join(
            [
                f"step {self.step} of {len(self.frames) - 1}: {'; '.join(frame.events)}",
                f"{found['computed']} tokens computed; pages: {found['held']} held, {found['idle']} idle, "
                f"{found['free']} free; {found['saved']} saved by sharing",
                *tables,
            ]
        )
