"""Compliance at work: every settlement is judged as it comes in, held if need be, and let go by two officers or ended.

The intake check judges before the settlement is stored, in the transaction that stores it: the data's rules refuse the
line, the quota is taken, the screens answer, and each answer is recorded. PASS goes on; REVIEW closes the compliance
gate until two different officers approve; REFUSE closes it too, and the next pass ends the settlement (ABORT without
secrets ever made, I5). A rejection by one officer ends it at once.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from typing import Literal
from uuid import UUID

import sqlalchemy as sa

from kernel.errors import ProblemError
from kernel.ids import new_uuid7
from settlement.domain.compliance import (
    ComplianceData,
    FindRate,
    ListScreen,
    Policy,
    QuotaClaim,
    QuotaDirection,
    QuotaRule,
    Screen,
    Screening,
    Subject,
    Verdict,
    check_data,
    combine,
    decide_quota,
    normalise_resident_id,
    quota_claim,
    verdicts_by_institution,
)
from settlement.domain.refusals import AbortReason, SettlementRefusal
from settlement.store import compliance as store
from settlement.store import gates
from settlement.store.gates import Gate, GateKind
from settlement.store.withdrawals import withdraw
from settlement.usecases.intake import Candidate, Fault

OFFICERS_NEEDED = 2
PASS_MAX = 500
HASH_KEY_BYTES_MIN = 32
GATE_REVIEW = "compliance: two officers have to approve"
GATE_REFUSED = "compliance: refused"


@dataclass(frozen=True, slots=True)
class Officer:
    """A person who decides cases, known by the key that signs the request."""

    name: str
    key_thumbprint: str


class ResidentHasher:
    """Residents' identity numbers as HMAC-SHA-256: without the key nobody can try numbers against the table."""

    def __init__(self, key: bytes) -> None:
        if len(key) < HASH_KEY_BYTES_MIN:
            raise ValueError(f"the hash key has fewer than {HASH_KEY_BYTES_MIN} bytes")
        self._key = key

    def __call__(self, rule: QuotaRule, resident_id: str) -> bytes:
        text = f"{rule.country}\0{normalise_resident_id(resident_id)}"
        return hmac.new(self._key, text.encode(), hashlib.sha256).digest()

    def __repr__(self) -> str:
        return "ResidentHasher(********)"


@dataclass(frozen=True, slots=True)
class Compliance:
    """The bridge's policy, screens and what counts towards quotas."""

    policy: Policy
    screens: tuple[Screen, ...]
    hasher: ResidentHasher | None
    """None only if the policy has no quota."""
    find_rate: FindRate

    @property
    def version(self) -> str:
        return f"{self.policy.name} {self.policy.version}"


class ComplianceCheck:
    """The intake check."""

    def __init__(self, compliance: Compliance) -> None:
        self._compliance = compliance

    def __call__(
        self, connection: sa.Connection, candidates: Sequence[Candidate], *, now: datetime
    ) -> Sequence[Fault | Gate]:
        subjects = [_subject(candidate) for candidate in candidates]
        faults: list[Fault] = []
        claims: dict[UUID, tuple[int, store.QuotaKey, QuotaClaim]] = {}
        for candidate, subject in zip(candidates, subjects, strict=True):
            found = check_data(self._compliance.policy, subject) or self._claim(subject, now)
            if isinstance(found, QuotaClaim):
                claims[subject.settlement] = (candidate.index, self._key(found, subject), found)
            elif found is not None:
                faults.append(_fault(candidate.index, *found))
        faults += self._take_quota(connection, claims, now)
        if faults:
            return faults
        return self._screen(connection, subjects, now)

    def _claim(self, subject: Subject, now: datetime) -> QuotaClaim | tuple[SettlementRefusal, str] | None:
        return quota_claim(self._compliance.policy, subject, at=now, find_rate=self._compliance.find_rate)

    def _key(self, claim: QuotaClaim, subject: Subject) -> store.QuotaKey:
        hasher = self._compliance.hasher
        if hasher is None or subject.data is None:
            raise ValueError("a policy with a quota needs a hash key")
        resident = hasher(claim.rule, subject.data.debtor_resident_id)
        return store.QuotaKey(claim.rule.name, claim.direction, resident, claim.year)

    def _take_quota(
        self, connection: sa.Connection, claims: dict[UUID, tuple[int, store.QuotaKey, QuotaClaim]], now: datetime
    ) -> list[Fault]:
        """In the order of the file; all rows are locked first, in one order, so that no two batches wait in a ring."""
        limits = {key: claim.rule.limit_minor for _, key, claim in claims.values()}
        used = store.lock_years(connection, limits) if limits else {}
        taken: dict[store.QuotaKey, dict[UUID, Fraction]] = {}
        faults = []
        for settlement, (index, key, claim) in claims.items():
            refused = decide_quota(claim, used_minor=used[key])
            if refused is not None:
                faults.append(_fault(index, *refused))
                continue
            used[key] += claim.counted_minor
            taken.setdefault(key, {})[settlement] = claim.counted_minor
        store.reserve(connection, taken, used=used, now=now)
        return faults

    def _screen(self, connection: sa.Connection, subjects: Sequence[Subject], now: datetime) -> list[Gate]:
        decisions, cases, closed = [], [], []
        for subject, (found, institutions) in zip(subjects, _answers(self._compliance, subjects, now), strict=True):
            decisions.append(_decision(self._compliance, subject, found, institutions, now=now))
            if found.verdict is Verdict.PASS:
                continue
            state = "review" if found.verdict is Verdict.REVIEW else "refused"
            parties = _parties(subject.data or ComplianceData())
            cases.append(store.CaseRow(subject.settlement, state, found.reason, parties, now, None))
            # The parties learn that it waits, and not why: a name on a list is no reason to tell them.
            reason = GATE_REVIEW if found.verdict is Verdict.REVIEW else GATE_REFUSED
            closed.append(Gate(subject.settlement, GateKind.COMPLIANCE, reason))
        store.insert_decisions(connection, decisions)
        store.insert_cases(connection, cases)
        return closed


@dataclass(frozen=True, slots=True)
class NewScreening:
    """Who may not be in the new legs (`stopped`), and what is to be recorded of it, whatever becomes of the legs."""

    stopped: frozenset[str]
    decisions: tuple[store.DecisionRow, ...] = ()

    def record(self, connection: sa.Connection) -> None:
        store.insert_decisions(connection, self.decisions)


def screen_anew(connection: sa.Connection, subject: Subject, *, compliance: Compliance, now: datetime) -> NewScreening:
    """A settlement is to have other legs than those that were screened: the institutions that it did not have before.

    Who passed, or was in the legs that officers judge, is not asked about again. The record has a verdict on each new
    one; its own is of what may go on, so that a provider that is left out holds up nothing.
    """
    screened = store.screened_institutions(connection, subject.settlement)
    new = [party for party in subject.institutions if party not in screened]
    if not new:
        return NewScreening(frozenset())
    ((found, verdicts),) = _answers(compliance, [subject], now)
    of_new = {party: verdicts[party] for party in new}
    stopped = frozenset(party for party, verdict in of_new.items() if verdict is not Verdict.PASS)
    reason = f"quoted anew; {found.reason}" if stopped else "quoted anew"
    record = Screening(Verdict.PASS, reason, found.version)
    return NewScreening(stopped, (_decision(compliance, subject, record, of_new, now=now),))


def find_barred(compliance: Compliance, institutions: Collection[str], *, now: datetime) -> frozenset[str]:
    """Whom a list names for what it is itself: with it in its legs a payment would be held or refused, whoever pays.

    For the market, which looks for somebody else: else one listed provider with the best price would stop all payments
    of a pair. A screening service is not asked: it judges payments.
    """
    subjects = [Subject(UUID(int=0), UUID(int=0), party, party, (), now.date(), None) for party in sorted(institutions)]
    found: set[str] = set()
    for screen in compliance.screens:
        if isinstance(screen, ListScreen):
            answers = screen.screen(subjects, on=now.date())
            found |= {
                subject.debtor
                for subject, answer in zip(subjects, answers, strict=True)
                if answer.verdict is not Verdict.PASS
            }
    return frozenset(found)


def keep_to_screened(connection: sa.Connection, subject: Subject, *, now: datetime) -> NewScreening:
    """Where nobody can be screened any more, as after a restart without a policy: of a settlement that was screened,
    nobody new may be in the legs. `now` is not needed; the shape is that of `screen_anew`."""
    if not store.decisions_of(connection, [subject.settlement])[subject.settlement]:
        return NewScreening(frozenset())
    screened = store.screened_institutions(connection, subject.settlement)
    return NewScreening(frozenset(party for party in subject.institutions if party not in screened))


def _decision(
    compliance: Compliance,
    subject: Subject,
    found: Screening,
    institutions: Mapping[str, Verdict],
    *,
    now: datetime,
) -> store.DecisionRow:
    return store.screen_decision(
        subject.settlement,
        verdict=found.verdict.value,
        by=", ".join(screen.name for screen in compliance.screens) or "policy",
        versions=f"{compliance.version}; {found.version}" if found.version else compliance.version,
        reason=found.reason,
        institutions={party: verdict.value for party, verdict in institutions.items()},
        now=now,
    )


def _answers(
    compliance: Compliance, subjects: Sequence[Subject], now: datetime
) -> list[tuple[Screening, dict[str, Verdict]]]:
    by_screen = [_asked(screen, subjects, now) for screen in compliance.screens]
    found = []
    for number, subject in enumerate(subjects):
        answers = [of_screen[number] for of_screen in by_screen]
        found.append((combine(answers), verdicts_by_institution(subject, answers)))
    return found


def end_refused(connection: sa.Connection, now: datetime) -> int:
    """End what a screen has refused; give quotas back that ended settlements held. One bounded transaction."""
    cases = store.refused_cases(connection, limit=PASS_MAX)
    if cases:
        details = {case.settlement: "refused by compliance" for case in cases}
        withdraw(connection, details, reason=AbortReason.COMPLIANCE, now=now)
        store.close_cases(connection, list(details), state="refused", now=now)
    lapsed = store.lapse_cases(connection, now=now, limit=PASS_MAX)
    return len(cases) + lapsed + store.end_uses(connection, now=now, limit=PASS_MAX)


def decide_case(
    connection: sa.Connection,
    settlement: UUID,
    *,
    verdict: Literal["approve", "reject"],
    officer: Officer,
    reason: str,
    version: str,
    now: datetime,
) -> store.CaseRow:
    """One officer's word. The second approval, by another officer, opens the gate; a rejection ends the settlement.

    Idempotent: the same officer's same verdict again changes nothing. Raises: ProblemError(compliance-case-not-found,
    officer-decided, compliance-case-closed).
    """
    case = store.lock_case(connection, settlement)
    if case is None:
        raise ProblemError(SettlementRefusal.COMPLIANCE_CASE_NOT_FOUND)
    given = store.decisions_of(connection, [settlement])[settlement]
    mine = [row for row in given if row.is_officer and officer.key_thumbprint == row.key_thumbprint]
    mine += [row for row in given if row.is_officer and officer.name == row.decided_by and row not in mine]
    if mine:
        if mine[0].verdict == verdict and mine[0].reason == reason:
            return case
        raise ProblemError(
            SettlementRefusal.OFFICER_DECIDED, f"{officer.name} said {mine[0].verdict} at {mine[0].decided_at}"
        )
    if case.state != "review" or case.closed_at is not None:
        raise ProblemError(SettlementRefusal.COMPLIANCE_CASE_CLOSED, f"it was {case.state}")
    row = store.DecisionRow(
        new_uuid7(), settlement, verdict, officer.name, True, officer.key_thumbprint, version, reason, now
    )
    store.insert_decisions(connection, [row])
    if verdict == "reject":
        withdraw(connection, {settlement: "rejected by a compliance officer"}, reason=AbortReason.COMPLIANCE, now=now)
        store.close_cases(connection, [settlement], state="rejected", now=now)
    else:
        approvals = {found.decided_by for found in given if found.verdict == "approve"} | {officer.name}
        if len(approvals) >= OFFICERS_NEEDED:
            by = ", ".join(sorted(approvals))
            gates.open_gates(connection, GateKind.COMPLIANCE, [settlement], by=by, now=now)
            store.close_cases(connection, [settlement], state="approved", now=now)
    found = store.find_case(connection, settlement)
    return found if found is not None else case


@dataclass(frozen=True, slots=True)
class QuotaLeft:
    rule: QuotaRule
    direction: QuotaDirection
    year: int
    used_minor: Fraction
    """Exact, in minor units of the rule's counting currency."""


def quota_left(
    connection: sa.Connection,
    compliance: Compliance,
    *,
    country: str,
    resident_id: str,
    year: int | None,
    now: datetime,
) -> list[QuotaLeft]:
    """A resident's quotas of a year, by default the present one of each rule's time zone."""
    found = []
    for rule in compliance.policy.quota:
        if rule.country != country or compliance.hasher is None:
            continue
        of_year = rule.year(now) if year is None else year
        for direction in sorted(rule.directions):
            key = store.QuotaKey(rule.name, direction, compliance.hasher(rule, resident_id), of_year)
            found.append(QuotaLeft(rule, direction, of_year, store.find_used(connection, key)))
    return found


def _asked(screen: Screen, subjects: Sequence[Subject], now: datetime) -> Sequence[Screening]:
    """A screen that fails, or answers another number than was asked, has not passed anybody."""
    try:
        answers = screen.screen(subjects, on=now.date())
        fault = "" if len(answers) == len(subjects) else "another number of answers than was asked for"
    except Exception as error:  # the port forbids it, and a screen is somebody else's code
        answers, fault = [], f"it failed: {type(error).__name__}"
    return [Screening(Verdict.REVIEW, f"{screen.name}: {fault}", screen.name)] * len(subjects) if fault else answers


def _subject(candidate: Candidate) -> Subject:
    new = candidate.settlement
    data = candidate.instruction.compliance
    return Subject(new.id, new.uetr, new.debtor, new.creditor, new.legs, new.value_date, data)


def _fault(index: int, refusal: SettlementRefusal, reason: str) -> Fault:
    return Fault(refusal.value, index, f"instruction {index}: {reason}")


def _parties(data: ComplianceData) -> dict[str, str]:
    """What officers need, and no identity number."""
    return {
        "debtor_name": data.debtor_name,
        "debtor_country": data.debtor_country,
        "debtor_lei": data.debtor_lei,
        "creditor_name": data.creditor_name,
        "creditor_country": data.creditor_country,
        "creditor_lei": data.creditor_lei,
        "purpose": data.purpose,
    }
