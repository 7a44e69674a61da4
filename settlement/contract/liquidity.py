"""The queue, limits, previews and runs. Runs wear `lqr_`, limits `lim_`."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal, Self
from uuid import UUID

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema, model_validator

from kernel import ids
from ledger.contract import Amount, CurrencyCode, Model, Moment, ParticipantRef, SignedAmount
from settlement.contract import BatchRef, SettlementRef
from settlement.domain.liquidity.model import LimitKind, NeedKind, Stage

_EXAMPLE = "0198c7b2-6f1e-7c3a-9d55-f5a72f6f9b28"


def _ref(prefix: str) -> tuple[object, ...]:
    return (
        BeforeValidator(lambda value: ids.parse(prefix, value) if isinstance(value, str) else value),
        PlainSerializer(lambda value: ids.show(prefix, value), return_type=str),
        WithJsonSchema({"type": "string", "pattern": ids.pattern(prefix), "examples": [f"{prefix}_{_EXAMPLE}"]}),
    )


RunRef = Annotated[UUID, *_ref("lqr")]
LimitRef = Annotated[UUID, *_ref("lim")]
Method = Literal["strict", "overtaking", "optimise"]
SettleAs = Literal["net", "gross"]
RunState = Literal["previewed", "running", "settled", "aborted"]


class FlowView(Model):
    payer: ParticipantRef
    payee: ParticipantRef
    amount_minor: Amount
    currency: CurrencyCode


class QueuedView(Model):
    """An instruction that waits for a run."""

    settlement: SettlementRef
    batch: BatchRef
    uetr: UUID
    debtor: ParticipantRef
    creditor: ParticipantRef
    priority: Literal["URGT", "HIGH", "NORM"]
    queued_at: Moment
    reason: str
    is_started: bool
    """False: its batch waits for POST /v1/batches/{batch}/run; no run takes it before."""
    run: SettlementRef | None
    """The netting settlement that has it, if one does."""
    other_gates: list[str]
    """What else keeps it waiting; a run leaves it alone until then."""
    flows: list[FlowView]


class QueueRequest(Model):
    batch: BatchRef


class QueueView(Model):
    batch: BatchRef
    queued: int
    """Instructions that were not in the queue before."""


class LimitRequest(Model):
    """What may be paid net in a UTC day, from `valid_from` on. No amount lifts the limit."""

    kind: LimitKind
    participant: ParticipantRef
    currency: CurrencyCode
    counterparty: ParticipantRef | None = None
    amount_minor: Annotated[str, Field(pattern="^(0|[1-9][0-9]{0,17})$", examples=["5000000"])] | None
    valid_from: date


class LimitView(Model):
    limit: LimitRef
    kind: LimitKind
    participant: ParticipantRef
    currency: CurrencyCode
    counterparty: ParticipantRef | None
    amount_minor: Amount | None
    valid_from: date
    is_operator: bool
    set_by: ParticipantRef
    set_at: Moment
    is_in_force: bool
    """Today."""


class PreviewRequest(Model):
    method: Method = "strict"
    settle_as: SettleAs = "net"
    seconds: Annotated[float, Field(gt=0, le=120)] = 20.0
    """The solver's time, of an optimising run."""
    weights: dict[CurrencyCode, Annotated[int, Field(ge=1, le=1_000_000)]] = Field(default_factory=dict)
    """What a minor unit of each currency counts in an optimising run; 1 if not named."""

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.settle_as == "gross" and self.method != "strict":
            raise ValueError("a gross run keeps the queue's order: method strict")
        return self


class PositionView(Model):
    participant: ParticipantRef
    currency: CurrencyCode
    before_minor: Amount
    after_minor: Amount


class RunView(Model):
    """A preview, and the run once it was started."""

    run: RunRef
    state: RunState
    method: Method
    settle_as: SettleAs
    needs_approval: bool
    """It breaks the queue's order: two officers have to approve it before it can start."""
    queue_count: int
    taken_count: int
    stages: dict[Stage, int]
    taken_sha256: str
    """What officers approve: the chosen instructions and the net payments."""
    positions_read_at: Moment
    """When the ledgers were asked. What has moved since is not in the preview."""
    positions: list[PositionView]
    value_minor: dict[CurrencyCode, Amount]
    """What the chosen instructions pay, gross."""
    liquidity_used_minor: dict[CurrencyCode, Amount]
    """The sum of what positions lose."""
    net: list[FlowView]
    value: SignedAmount | None = None
    bound: SignedAmount | None = None
    """Of an optimising run: its weighted value, and what no choice can exceed."""
    is_proven: bool | None = None
    seconds: str
    created_by: str
    created_at: Moment
    approved_by: list[str]
    started_by: str | None
    started_at: Moment | None
    ended_at: Moment | None
    reason: str
    """Why it was aborted."""
    netting: SettlementRef | None
    round: int | None
    """Of a gross run: which round is under way, from 0."""


class NeedView(Model):
    """`participant` lacks so much money (or room under that limit)."""

    kind: NeedKind
    participant: ParticipantRef
    currency: CurrencyCode
    amount_minor: Amount
    counterparty: ParticipantRef | None


class RunItemView(Model):
    """An instruction that a run saw: taken at a stage, or left for a reason."""

    place: int
    settlement: SettlementRef
    stage: Stage | None
    round: int | None
    sentence: str
    needs: list[NeedView]
    """Together the smallest: with them it settles in queue order, with a minor unit less of any it does not."""
    is_worked_out: bool
    """False: ask `why` of it; the amounts of a long list are not all worked out."""


class ApprovalRequest(Model):
    token: Annotated[str, Field(min_length=1, max_length=4_096)]
    """Compact JWS of type `jiaozi-liquidity-approval+jws` over {"run", "taken_sha256"}, by a registered officer."""


class WhyView(Model):
    settlement: SettlementRef
    sentence: str
    needs: list[NeedView]
    is_worked_out: bool
    """True: no amount can be one smaller (checked). False: the amounts free it, and less might."""
    behind: int
