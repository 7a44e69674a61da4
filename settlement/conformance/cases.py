"""The cases: what every island behind the port promises. A case's rule is its first sentence in the report."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from settlement.conformance.stage import AMOUNT_MINOR, Case, Order, Stage
from settlement.conformance.subject import Line, NotOffered
from settlement.domain.escrow import Decision
from settlement.islands.authorisers import Authorised
from settlement.islands.balances import EscrowTotals, ShowsEscrow
from settlement.islands.port import Contradiction, Ended, Held, HoldStanding, Refused, SignedHold, Unknown

TEN_YEARS = 10 * 365 * 86_400
CASES: list[Case] = []


def case(rule: str) -> Callable[[Callable[[Stage], None]], Callable[[Stage], None]]:
    def register(run: Callable[[Stage], None]) -> Callable[[Stage], None]:
        CASES.append(Case(run.__name__.replace("_", "-"), rule, run))
        return run

    return register


# --- hold


@case("a hold stands with the ordered terms and reserves its amount")
def hold(stage: Stage) -> None:
    order = stage.order()
    stage.expect_standing(order, HoldStanding.ABSENT)
    stage.hold(order)
    stage.expect_standing(order, HoldStanding.HELD)
    stage.expect_moved(debit=-AMOUNT_MINOR, credit=0)


@case("a hold ordered twice is held once")
def hold_twice(stage: Stage) -> None:
    order = stage.order()
    stage.expect(stage.prepare(order, order) == [Held(), Held()], "the same hold twice in one call is not held")
    stage.hold(order)
    stage.expect_moved(debit=-AMOUNT_MINOR, credit=0)


@case("many holds in one call are answered in order, and one refused refuses no other")
def hold_many(stage: Stage) -> None:
    rich = stage.subject.available(stage.subject.debit) + 1
    orders = [stage.order(), stage.order(rich), stage.order(7), stage.order()]
    outcomes = stage.prepare(*orders)
    stage.expect([isinstance(item, Held) for item in outcomes] == [True, False, True, True], f"answered {outcomes}")
    stage.expect(isinstance(outcomes[1], Refused), f"the poor one was answered {outcomes[1]}")
    stage.expect_moved(debit=-2 * AMOUNT_MINOR - 7, credit=0)


@case("a hold above what is available is refused as insufficient-funds and reserves nothing")
def insufficient_funds(stage: Stage) -> None:
    order = stage.order(stage.subject.available(stage.subject.debit) + 1)
    outcome = stage.prepare(order)[0]
    stage.expect(isinstance(outcome, Refused) and outcome.code == "insufficient-funds", f"answered {outcome}")
    stage.expect_standing(order, HoldStanding.ABSENT)
    stage.expect_moved(debit=0, credit=0)


@case("all that is available can be held, and then nothing more")
def hold_all(stage: Stage) -> None:
    everything = stage.subject.available(stage.subject.debit)
    order, more = stage.order(everything), stage.order(1)
    stage.hold(order)
    stage.expect(isinstance(stage.prepare(more)[0], Refused), "held money was held again")
    stage.expect_moved(debit=-everything, credit=0)


@case("an authorisation that is none holds nothing")
def forged_authorisation(stage: Stage) -> None:
    order = stage.order()
    for token in ("x" * 40, "0x" + "00" * 80):
        holds = [SignedHold(order.hold, token)]
        stage.never(lambda holds=holds: stage.island.prepare(holds), Held, "held on no authorisation")  # type: ignore[misc]
    stage.expect_standing(order, HoldStanding.ABSENT)


@case("the check refuses an authorisation of other terms and takes the right one")
def authorisation_of_other_terms(stage: Stage) -> None:
    order = stage.order()
    right = stage.subject.authorise(order.hold)
    others = [
        stage.other_terms(order, AMOUNT_MINOR - 1),
        replace(order.hold, commit_hash=secrets.token_bytes(32)),
        replace(order.hold, abort_hash=secrets.token_bytes(32)),
        replace(order.hold, reference=order.hold.hold_id),
        stage.order().hold,
    ]
    for wanted in others:
        outcome = stage.subject.check(wanted, right)
        stage.expect(isinstance(outcome, Refused), f"the check took other terms: {outcome}")
    outcome = stage.subject.check(order.hold, right)
    stage.expect(isinstance(outcome, Authorised), f"the check refused the right terms: {outcome}")


# --- post


@case("the commit secret posts a hold, once, with all of its amount")
def post(stage: Stage) -> None:
    order = stage.order()
    stage.hold(order)
    stage.expect_ended(stage.fulfil(order))
    stage.expect_standing(order, HoldStanding.POSTED)
    stage.expect_moved(debit=-AMOUNT_MINOR, credit=AMOUNT_MINOR)


@case("a post repeated is ended and moves nothing more")
def post_twice(stage: Stage) -> None:
    order = stage.order()
    stage.hold(order)
    stage.expect_ended(stage.fulfil(order, order))
    stage.expect_ended(stage.fulfil(order))
    stage.expect_moved(debit=-AMOUNT_MINOR, credit=AMOUNT_MINOR)


@case("a post of a hold that never came is no answer, and burns nothing")
def post_before_hold(stage: Stage) -> None:
    order = stage.order()
    stage.never(lambda: stage.island.fulfil([order.post]), Ended, "a hold that is not there was posted")
    stage.hold(order)
    stage.expect_ended(stage.fulfil(order))


@case("no other secret posts a hold")
def wrong_secret_post(stage: Stage) -> None:
    order = stage.order()
    stage.hold(order)
    for wrong in (order.secrets.abort, secrets.token_bytes(32), bytes(32), order.hold.commit_hash):
        end = order.end(Decision.COMMIT, wrong)
        stage.never(lambda end=end: stage.island.fulfil([end]), Ended, "a wrong secret posted")  # type: ignore[misc]
    stage.expect_standing(order, HoldStanding.HELD)
    stage.expect_moved(debit=-AMOUNT_MINOR, credit=0)


@case("a posted hold is never voided, and the adapter says that it stands posted")
def void_after_post(stage: Stage) -> None:
    order = stage.order()
    stage.hold(order)
    stage.expect_ended(stage.fulfil(order))
    outcome = stage.cancel(order)[0]
    stage.expect(isinstance(outcome, Contradiction), f"answered {outcome}")
    stage.expect_standing(order, HoldStanding.POSTED)


@case("a hold ordered again after it was posted is not held again")
def hold_after_post(stage: Stage) -> None:
    order = stage.order()
    stage.hold(order)
    stage.expect_ended(stage.fulfil(order))
    stage.never(lambda: stage.island.prepare([stage.signed(order)]), Held, "a posted hold was held again")
    stage.expect_moved(debit=-AMOUNT_MINOR, credit=AMOUNT_MINOR)


# --- void


@case("the abort secret voids a hold, once, and its money is available again")
def void(stage: Stage) -> None:
    order = stage.order()
    stage.hold(order)
    stage.expect_ended(stage.cancel(order, order))
    stage.expect_ended(stage.cancel(order))
    stage.expect_standing(order, HoldStanding.VOIDED)
    stage.expect_moved(debit=0, credit=0)


@case("no other secret voids a hold")
def wrong_secret_void(stage: Stage) -> None:
    order = stage.order()
    stage.hold(order)
    for wrong in (order.secrets.commit, secrets.token_bytes(32), bytes(32)):
        stage.island.cancel([order.end(Decision.ABORT, wrong)])
        stage.subject.finalise()
    stage.expect_standing(order, HoldStanding.HELD)
    stage.expect_moved(debit=-AMOUNT_MINOR, credit=0)


@case("a voided hold is never posted")
def post_after_void(stage: Stage) -> None:
    order = stage.order()
    stage.hold(order)
    stage.expect_ended(stage.cancel(order))
    stage.never(lambda: stage.island.fulfil([order.post]), Ended, "a voided hold was posted")
    stage.expect_standing(order, HoldStanding.VOIDED)
    stage.expect_moved(debit=0, credit=0)


@case("a hold ordered again after it was voided is refused")
def hold_after_void(stage: Stage) -> None:
    order = stage.order()
    stage.hold(order)
    stage.expect_ended(stage.cancel(order))
    stage.never(lambda: stage.island.prepare([stage.signed(order)]), Held, "a voided hold was held again")
    stage.expect_moved(debit=0, credit=0)


@case("an abort that overtakes its hold leaves a tombstone: the late hold is refused for ever")
def void_before_hold(stage: Stage) -> None:
    order = stage.order()
    authorised = stage.signed(order)
    stage.expect_ended(stage.cancel(order))
    stage.expect_ended(stage.cancel(order))
    stage.never(lambda: stage.island.prepare([authorised]), Held, "the hold came after its void")
    stage.expect_standing(order, HoldStanding.VOIDED)
    stage.expect_moved(debit=0, credit=0)


@case("a tombstone by whoever does not know the abort secret keeps out no hold")
def tombstone_of_a_stranger(stage: Stage) -> None:
    order = stage.order()
    stage.island.cancel([order.end(Decision.ABORT, secrets.token_bytes(32))])
    stage.subject.finalise()
    stage.hold(order)


@case("many ends in one call are answered in order, and one that cannot end stops no other")
def end_many(stage: Stage) -> None:
    good, voided, absent, last = (stage.order() for _ in range(4))
    outcomes = stage.prepare(good, voided, last)
    stage.expect(outcomes == [Held()] * 3, f"answered {outcomes}")
    stage.expect_ended(stage.cancel(voided))
    batch = [good.post, voided.post, absent.post, good.post, last.post]

    def ended() -> list[bool]:
        return [isinstance(item, Ended) for item in stage.island.fulfil(batch)]

    for _ in range(50):
        found = ended()
        if found == [True, False, False, True, True]:
            break
        stage.subject.finalise()
    stage.expect(found == [True, False, False, True, True], f"ended: {found}")
    stage.expect_moved(debit=-2 * AMOUNT_MINOR, credit=2 * AMOUNT_MINOR)


# --- ids


@case("an id used with other terms is refused, and the first hold stays as it is")
def id_reuse(stage: Stage) -> None:
    order = stage.order()
    stage.hold(order)
    try:
        other = stage.other_terms(order, 7)
        holds = [SignedHold(other, stage.subject.authorise(other))]
        stage.never(lambda: stage.island.prepare(holds), Held, "an id was used twice")
    except ValueError:  # the payer's own signer refuses: as good
        pass
    stage.expect_standing(order, HoldStanding.HELD)
    stage.expect_moved(debit=-AMOUNT_MINOR, credit=0)


@case("look-up tells absent, held, posted, voided and other terms apart, in order")
def look_up(stage: Stage) -> None:
    absent, held, posted, voided, buried = (stage.order() for _ in range(5))
    stage.expect(stage.prepare(held, posted, voided) == [Held()] * 3, "good holds were not held")
    stage.expect_ended(stage.fulfil(posted))
    stage.expect_ended(stage.cancel(voided, buried))
    stage.expect_standing(buried, HoldStanding.VOIDED)
    orders = [item.hold for item in (absent, held, posted, voided, buried)]
    orders += [stage.other_terms(held, 7), replace(held.hold, commit_hash=bytes(32))]
    found = stage.island.look_up(orders)
    wanted = [HoldStanding.ABSENT, HoldStanding.HELD, HoldStanding.POSTED, HoldStanding.VOIDED, HoldStanding.VOIDED]
    wanted += [HoldStanding.OTHER] * 2
    stage.expect(found == wanted, f"looked up {[item.value for item in found]}")


@case("a hold that the payer placed first under its own hashes is never counted as the leg, and the abort still ends")
def front_run_by_the_payer(stage: Stage) -> None:
    order = stage.order()
    evil = replace(order.hold, commit_hash=secrets.token_bytes(32))
    stage.subject.place_as_payer(evil)
    stage.never(lambda: stage.island.prepare([stage.signed(order)]), Held, "another's hashes were counted as held")
    _expect_not_ours(stage, order)
    stage.expect_ended(stage.cancel(order))  # its abort hash is ours, so this frees the money too


def _expect_not_ours(stage: Stage, order: Order) -> None:
    """A ledger that shows a hold to its parties alone says absent; either is as good to the engine."""
    found = stage.standing(order.hold)
    stage.expect(found in (HoldStanding.OTHER, HoldStanding.ABSENT), f"it stands {found.value}")


@case("a hold with an expiry is never counted as the leg")
def expiring_hold(stage: Stage) -> None:
    order = stage.order()
    stage.subject.place_as_payer(order.hold, expires_in_seconds=3_600)
    stage.never(lambda: stage.island.prepare([stage.signed(order)]), Held, "a hold that expires was counted as held")
    _expect_not_ours(stage, order)
    stage.expect_ended(stage.cancel(order))
    stage.expect_moved(debit=0, credit=0)


@case("after its expiry a hold is not posted, and its void is ended")
def expired_hold(stage: Stage) -> None:
    order = stage.order()
    stage.subject.place_as_payer(order.hold, expires_in_seconds=stage.subject.expiry_seconds)
    stage.subject.pass_time(stage.subject.expiry_seconds + 1)
    stage.never(lambda: stage.island.fulfil([order.post]), Ended, "an expired hold was posted")
    stage.expect_ended(stage.cancel(order))
    stage.expect_moved(debit=0, credit=0)


@case("a leg's hold never expires: years later it is posted")
def no_expiry(stage: Stage) -> None:
    order = stage.order()
    stage.hold(order)
    stage.subject.pass_time(TEN_YEARS)
    stage.expect_standing(order, HoldStanding.HELD)
    stage.expect_ended(stage.fulfil(order))
    stage.expect_moved(debit=-AMOUNT_MINOR, credit=AMOUNT_MINOR)


@case("a post by somebody else with the published secret counts as ours")
def posted_by_another(stage: Stage) -> None:
    order = stage.order()
    stage.hold(order)
    stage.subject.post_as_payee(order.hold, order.secrets.commit)
    stage.expect_ended(stage.fulfil(order))
    stage.expect_moved(debit=-AMOUNT_MINOR, credit=AMOUNT_MINOR)


# --- transport and crashes


@case("an adapter opened anew finds what the last one did")
def crash(stage: Stage) -> None:
    held, posted, voided = (stage.order() for _ in range(3))
    stage.expect(stage.prepare(held, posted, voided) == [Held()] * 3, "good holds were not held")
    fresh = stage.subject.reopened()
    stage.expect(stage.prepare(held, island=fresh) == [Held()], "a held leg was not held for a fresh adapter")
    stage.expect_ended(stage.fulfil(posted, island=fresh))
    fresh = stage.subject.reopened()
    stage.expect_ended(stage.fulfil(posted, island=fresh))
    stage.expect_ended(stage.cancel(voided, island=fresh))
    stage.expect_ended(stage.cancel(voided, island=stage.subject.reopened()))
    stage.expect_moved(debit=-2 * AMOUNT_MINOR, credit=AMOUNT_MINOR)


@case("a lost acknowledgement is no answer; asked again, what was done was done once")
def lost_answer(stage: Stage) -> None:
    posted, voided = stage.order(), stage.order()
    authorised = [stage.signed(posted), stage.signed(voided)]
    with stage.subject.losing_answers():
        outcomes: list[object] = list(stage.island.prepare(authorised))
        stage.expect(not any(isinstance(item, Refused) for item in outcomes), f"silence is no refusal: {outcomes}")
    stage.expect(stage.prepare(posted, voided) == [Held()] * 2, "not held after a lost answer")
    with stage.subject.losing_answers():
        outcomes = list(stage.island.fulfil([posted.post]))
        stage.expect(not isinstance(outcomes[0], Contradiction), f"silence is no contradiction: {outcomes}")
    stage.expect_ended(stage.fulfil(posted))
    with stage.subject.losing_answers():
        stage.island.cancel([voided.void])
    stage.expect_ended(stage.cancel(voided))
    stage.expect_moved(debit=-AMOUNT_MINOR, credit=AMOUNT_MINOR)


@case("a lost request is no answer; asked again, it is done")
def lost_request(stage: Stage) -> None:
    order = stage.order()
    authorised = stage.signed(order)
    with stage.subject.losing_requests():
        outcome = stage.island.prepare([authorised])[0]
        stage.expect(not isinstance(outcome, Refused), f"silence is no refusal: {outcome}")
    stage.hold(order)
    with stage.subject.losing_requests():
        stage.island.fulfil([order.post])
    stage.expect_ended(stage.fulfil(order))
    stage.expect_moved(debit=-AMOUNT_MINOR, credit=AMOUNT_MINOR)


@case("requests that arrive twice are done once")
def duplicate(stage: Stage) -> None:
    posted, voided = stage.order(), stage.order()
    with stage.subject.duplicating():
        stage.expect(stage.prepare(posted, voided) == [Held()] * 2, "good holds were not held")
        stage.expect_ended(stage.fulfil(posted))
        stage.expect_ended(stage.cancel(voided))
    stage.expect_moved(debit=-AMOUNT_MINOR, credit=AMOUNT_MINOR)


@case("a hold that arrives after its void is kept out by the void's tombstone")
def reorder(stage: Stage) -> None:
    order = stage.order()
    authorised = stage.signed(order)
    with stage.subject.delaying():
        outcome = stage.island.prepare([authorised])[0]
        stage.expect(isinstance(outcome, Unknown), f"a request under way was answered {outcome}")
        stage.island.cancel([order.void])
    stage.expect_ended(stage.cancel(order))
    stage.expect_standing(order, HoldStanding.VOIDED)
    stage.expect_moved(debit=0, credit=0)


@case("a ledger that does not answer is unknown, never refused and never ended")
def away(stage: Stage) -> None:
    order = stage.order()
    island = stage.subject.unreachable()
    outcomes = [
        *island.prepare([stage.signed(order)]),
        *island.fulfil([order.post]),
        *island.cancel([order.void]),
    ]
    stage.expect(all(isinstance(item, Unknown) for item in outcomes), f"answered {outcomes}")
    found = island.look_up([order.hold])[0]
    stage.expect(found is HoldStanding.UNKNOWN, f"looked up {found.value}")


@case("the same orders from several threads at once are done once")
def concurrent(stage: Stage) -> None:
    orders = [stage.order() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        held = list(pool.map(lambda _: stage.prepare(*orders), range(4)))
        stage.expect(held == [[Held()] * 4] * 4, f"answered {held}")
        for outcomes in pool.map(lambda _: stage.fulfil(*orders), range(4)):
            stage.expect_ended(outcomes)
    stage.expect_moved(debit=-4 * AMOUNT_MINOR, credit=4 * AMOUNT_MINOR)


@case("a hold that is mined and reorganised away is not counted, and is held when it is mined again")
def reorganised_hold(stage: Stage) -> None:
    order = stage.order()
    authorised = stage.signed(order)
    with stage.subject.reorganising():
        outcome = stage.island.prepare([authorised])[0]
        stage.expect(isinstance(outcome, Unknown), f"a hold that is not final was answered {outcome}")
    stage.expect(stage.standing(order.hold) in (HoldStanding.ABSENT, HoldStanding.HELD), "it stands otherwise")
    stage.hold(order)
    stage.expect_ended(stage.fulfil(order))
    stage.expect_moved(debit=-AMOUNT_MINOR, credit=AMOUNT_MINOR)


@case("a post that is mined and reorganised away is not counted, and is posted again")
def reorganised_post(stage: Stage) -> None:
    order = stage.order()
    stage.hold(order)
    with stage.subject.reorganising():
        outcome = stage.island.fulfil([order.post])[0]
        stage.expect(isinstance(outcome, Unknown), f"a post that is not final was answered {outcome}")
    stage.expect_ended(stage.fulfil(order))
    stage.expect_moved(debit=-AMOUNT_MINOR, credit=AMOUNT_MINOR)


# --- statement


@case("the statement shows each posted leg once, oldest first, and no hold, void or refusal")
def statement(stage: Stage) -> None:
    first, second, voided, held = stage.order(3), stage.order(4), stage.order(5), stage.order(6)
    stage.expect(stage.prepare(first, second, voided, held) == [Held()] * 4, "good holds were not held")
    stage.expect_ended(stage.fulfil(first))
    stage.expect_ended(stage.fulfil(second, second))
    stage.expect_ended(stage.cancel(voided))
    ours = {item.hold.hold_id for item in (first, second, voided, held)}
    for account, sign in ((stage.subject.debit, -1), (stage.subject.credit, 1)):
        lines = [line for line in stage.subject.lines(account) if line.hold_id in ours]
        wanted = [Line(first.hold.hold_id, sign * 3), Line(second.hold.hold_id, sign * 4)]
        stage.expect(lines == wanted, f"the lines are {lines}")


@case("an escrow shows what it keeps: a hold adds its amount, a post or a void takes it away, and it counts no other")
def escrow_totals(stage: Stage) -> None:
    island = stage.island
    if not isinstance(island, ShowsEscrow):
        raise NotOffered("the ledger keeps held money in the accounts, in no escrow")

    def totals() -> EscrowTotals:
        found = island.escrow_totals()
        stage.expect(found is not None, "the escrow's totals are not shown")
        return found or EscrowTotals(0, 0)

    def expect_kept(minor: int) -> None:
        wanted, found = EscrowTotals(before.balance_minor + minor, before.held_minor + minor), totals()
        stage.expect(found == wanted, f"the totals are {found}, not {wanted}")

    before = totals()
    posted, voided = stage.order(3), stage.order(4)
    stage.expect(stage.prepare(posted, voided) == [Held()] * 2, "good holds were not held")
    expect_kept(7)
    stage.expect_ended(stage.fulfil(posted))
    expect_kept(4)
    stage.expect_ended(stage.cancel(voided))
    expect_kept(0)
