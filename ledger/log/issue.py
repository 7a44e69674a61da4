"""Making receipts and proofs from the log's tables, for the API."""

from __future__ import annotations

import sqlalchemy as sa

from kernel.clock import to_micros
from kernel.errors import InvariantBroken
from kernel.ids import AccountNumber
from kernel.transparency.merkle import leaf_hash
from kernel.transparency.tiles import TiledTree
from ledger.domain.blocks import (
    EVIDENCE_HOLD_TERMS,
    EVIDENCE_TOMBSTONE,
    Evidence,
    digest_evidence,
    hold_terms_body,
)
from ledger.domain.state import Hold
from ledger.domain.vocabulary import KIND_CODE, TRANSFER_KINDS, TransferKind
from ledger.log import queries
from ledger.log.leaves import leaf_input, salts
from ledger.receipts import Receipt, ReceiptTransfer, SupplyStatement
from ledger.store.queries import BookedTransfer
from ledger.store.tables import evidence, hold_event, hold_tombstone


def make_receipt(
    connection: sa.Connection, transfer: BookedTransfer, *, master: bytes, ledger: str, currency: str, quorum: int
) -> Receipt | None:
    """The receipt of a booked transfer under the newest checkpoint that covers it and that `quorum` witnesses have
    cosigned; None if there is none yet.

    Raises InvariantBroken (I4) if the journal's row is not the one that was sealed.
    """
    checkpoint = queries.best_checkpoint(connection, seq=transfer.seq, quorum=quorum)
    if checkpoint is None:
        return None
    booked = ReceiptTransfer(
        seq=transfer.seq,
        id=transfer.id,
        kind=TRANSFER_KINDS[transfer.kind],
        debit=AccountNumber(transfer.debit) if transfer.debit else None,
        credit=AccountNumber(transfer.credit) if transfer.credit else None,
        amount_minor=transfer.amount,
        hold=transfer.hold,
        reference=transfer.reference,
        submitter=transfer.submitter,
        booked_at=transfer.booked_at,
    )
    items = _evidence_of(connection, transfer)
    digest = digest_evidence(items) if items else None
    salt = salts(master, transfer.seq, 1)
    tree = TiledTree(checkpoint.size, queries.tile_reader(connection))
    index = transfer.seq - 1
    if leaf_hash(leaf_input(salt, booked.record, digest)) != tree.leaf(index):
        raise InvariantBroken("I4", f"seq {transfer.seq} is not what was sealed in the log")
    return Receipt(
        format="jiaozi-receipt/v1",
        ledger=ledger,
        currency=currency,
        transfer=booked,
        salt=salt,
        evidence_digest=digest,
        leaf_index=index,
        tree_size=checkpoint.size,
        inclusion_proof=tree.inclusion_proof(index),
        checkpoint=queries.cosigned_notes(connection, [checkpoint])[0],
        supply=SupplyStatement.model_validate_json(checkpoint.supply),
    )


def _evidence_of(connection: sa.Connection, transfer: BookedTransfer) -> list[Evidence]:
    """All that the block's evidence digest covers of one transfer. By ids: a single seq has no index."""
    own = transfer.id.bytes
    rows = connection.execute(
        sa.select(evidence.c.kind, evidence.c.body).where(evidence.c.transfer_id == transfer.id)
    ).all()
    found = [Evidence(transfer.seq, own, row.kind, row.body) for row in rows]
    if transfer.kind == KIND_CODE[TransferKind.HOLD]:
        placed = connection.execute(
            sa.select(hold_event).where(hold_event.c.hold_id == transfer.id, hold_event.c.phase == 0)
        ).one()
        expires_at = to_micros(placed.expires_at) if placed.expires_at is not None else 0
        hold = Hold(own, 0, 0, 0, placed.commit_hash, placed.abort_hash, expires_at, True, 0, 0)
        found.append(Evidence(transfer.seq, own, EVIDENCE_HOLD_TERMS, hold_terms_body(hold)))
    if transfer.kind == KIND_CODE[TransferKind.TOMBSTONE] and transfer.hold is not None:
        guards = connection.execute(
            sa.select(hold_tombstone.c.guard).where(
                hold_tombstone.c.hold_id == transfer.hold, hold_tombstone.c.transfer_id == transfer.id
            )
        ).scalars()
        found += [Evidence(transfer.seq, own, EVIDENCE_TOMBSTONE, transfer.hold.bytes + guard) for guard in guards]
    return found
