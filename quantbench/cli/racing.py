"""The rounds of ``quantbench pick``: a few prompts for every contender, then more for those who may still be picked."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from quantbench.core.units import format_bytes, short, with_interval

if TYPE_CHECKING:  # this module is imported for every command's help: what only measuring takes is imported when it measures
    from quantbench.advice.decision import Limits
    from quantbench.advice.pareto import Candidate
    from quantbench.core.record import Record
    from quantbench.planning.lineup import Contender, Lineup
    from quantbench.running.session import Session

ANSWERED = 5
"""Prompts of each set that are timed; all are scored."""

FIRST, LAST = ("ten", "brief"), ("mixed", "brief")
"""Prompt set and profile of the first and of the last round. Profile quick times too few rounds for an interval of the speed,
without which nobody is out by speed."""


@dataclass
class Race:
    """The rounds among the contenders of a lineup; ``say`` shows a sentence.

    ``keep``: do not delete again what was downloaded for a contender that lost.
    """

    lineup: Lineup
    limits: Limits
    say: Callable[[str], None]
    keep: bool = False
    run_id: str = ""
    """The run that the decision rests on: that of the last round."""
    _missing: dict[str, Sequence[str]] = field(default_factory=dict)
    """By contender, the files that were not on this machine before: only these are deleted again."""
    _announced: set[str] = field(default_factory=set)

    def run(self, contenders: Sequence[Contender]) -> None:
        """Measure all of them in the first round, and in the last one those who are not out; every row is stored at once."""
        from quantbench.models.hub import not_cached

        hub = self.lineup.repository
        self._missing = {each.name: not_cached(hub, each.parts) for each in self.lineup.contenders if each.parts}
        out = self._round(contenders, *FIRST)
        for name, why in out.items():
            self.say(f"out: {name}, {why}")
        standing = [each for each in contenders if each.name not in out]
        self._lost(each for each in contenders if each.name in out)
        if standing:
            self._round(standing, *LAST)

    def forget(self, contenders: Iterable[Contender]) -> None:
        """Delete what was downloaded for them, unless it is to be kept; what was here before stays."""
        from quantbench.models.hub import forget

        for each in contenders:
            files = () if self.keep else self._missing.pop(each.name, ())
            if files and not forget(self.lineup.repository, files):
                self.say(f"{each.name} could not be deleted from the hub's cache; hf cache rm deletes it")

    def _lost(self, contenders: Iterable[Contender]) -> None:
        """Forget those who lost, but what the others are compared with, which is needed to the end."""
        self.forget(each for each in contenders if each.place != self.lineup.model)

    def _round(self, contenders: Sequence[Contender], prompts: str, profile: str) -> Mapping[str, str]:
        """Measure contenders one by one; who cannot be picked any more, with the reason."""
        from quantbench.advice import race

        with ExitStack() as stack:
            session, planned = self._open(contenders, prompts, profile, stack)
            self.run_id = session.run_id
            for each in contenders:
                self._measure(session, planned[each.name], each)
            if prompts == LAST[0]:
                session.measure_again()
            session.runner.disturbed()  # marks what only the round as a whole shows to be disturbed
        for note in session.notes:
            self.say(note)
        found = [candidate for record in session.records if (candidate := _candidate(session, record))]
        known = {candidate.name for candidate in found}
        failed = {each.name: "not measured" for each in contenders if each.name not in known}
        return {**failed, **race.out([race.of_any_process(each) for each in found], self.limits)}

    def _open(
        self, contenders: Sequence[Contender], prompts: str, profile: str, stack: ExitStack
    ) -> tuple[Session, Mapping[str, str]]:
        """A session that stays open as long as ``stack``, and the ids of its scenarios by contender."""
        from quantbench.running.session import Session

        options = replace(self.lineup.options, prompts=(prompts,), profile=profile)
        session = Session(options, command=shlex.join(["quantbench", *sys.argv[1:]]), root=Path.cwd())
        planned = {each.variant.name: test_id for test_id, each in session.planned.items() if not each.variant.control}
        session.start([planned[each.name] for each in contenders], verbosity=-1)
        stack.push(lambda _, error, __: session.finish(interrupted=isinstance(error, KeyboardInterrupt)))
        for sentence in session.announced:
            if sentence not in self._announced:
                self.say(sentence)
        self._announced.update(session.announced)
        return session, planned

    def _measure(self, session: Session, test_id: str, contender: Contender) -> None:
        """Measure one contender and say its figures; its files are forgotten at once where it is surely out by size or KLD."""
        from quantbench.advice.race import too_much

        scenario = session.planned[test_id]
        record = session.runner.measure(scenario)
        found = _candidate(session, record)
        self.say(f"{contender.name}, prompts {scenario.prompts}: {_figures(found) if found else _why(record)}")
        if found and scenario.prompts == FIRST[0] and too_much(found, self.limits):
            self._lost([contender])


def _candidate(session: Session, record: Record) -> Candidate | None:
    """The figures that a pick rests on; None where some are missing."""
    from quantbench.advice.decision import Rejection, as_candidate
    from quantbench.results.rows import Group, Row

    row = Row(session.runner.row(record))
    found = as_candidate(row, Group((row,)))
    return None if isinstance(found, Rejection) else found


def _figures(found: Candidate) -> str:
    speed = with_interval(found.tps, found.tps_low, found.tps_high, "tok/s")
    kld = with_interval(found.kld, found.kld_low, found.kld_high, show=short)
    return f"{format_bytes(found.weight_bytes)}, {speed}{' beside other work' * found.disturbed}, KLD {kld}"


def _why(record: Record) -> str:
    return f"{record.status}, {record.reason}" if record.reason else "not all figures that a pick needs were measured"
