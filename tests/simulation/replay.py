"""A schedule as a conversation: its operations, and the trace that they lead to.

The trace is that of the scenarios (tests/engine/conversation.py).  Not here: running (runner.py).
"""

from __future__ import annotations

from tests.engine.conversation import Conversation
from tests.engine.network import World
from tests.engine.safety import Violation
from tests.simulation.runner import Runner
from tests.simulation.schedule import Operation, Schedule


class Replay(Conversation):
    """Watches one run and writes down what it sees."""

    def watch(self, world: World) -> None:
        self._world = world
        world.observe = self._observe

    def told(self, operation: Operation) -> None:
        self._lines.append(str(operation))

    def stands(self) -> None:
        """Where everything stands at the end."""
        for vm in sorted(self.world.interfaces):
            try:
                self._show(vm)
            except Violation as violation:
                self._lines.append(f"    {violation}")

    @property
    def text(self) -> str:
        return "\n".join(self._lines)


def replay(schedule: Schedule) -> str:
    """The whole trace, with the violation at its end if there is one."""
    conversation = Replay()
    runner = Runner(schedule, conversation.watch)
    runner.operations.told = conversation.told
    end = ""
    try:
        runner.run()
    except AssertionError as error:
        end = f"\n*** {error}"
    conversation.stands()
    return f"{schedule}\n{conversation.text}{end}"
