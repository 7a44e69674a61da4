"""The payers' institutions: each signs, by its real key, the legs of its own payments, and refuses what it is told to.

Their one duty to the bridge is `POST /v1/leg-authorisations` (`settlement.islands.authorisers.HttpAuthoriser`); they
answer over HTTP behind a proxy of their own, so that they can die, be slow, and lose messages.
"""

from __future__ import annotations

import json
from datetime import timedelta
from uuid import UUID

from kernel.clock import system_clock
from kernel.crypto.keys import PrivateKey
from kernel.ids import ParticipantId
from ledger.contract import TransferTerms, sign_instruction
from settlement.torture.proxy import Answer, Message, OnPoint, Proxy

SIGNATURE_LIFE = timedelta(hours=1)
_JSON = {"content-type": "application/json"}


class Institution:
    def __init__(self, participant: ParticipantId, key: PrivateKey, on_point: OnPoint) -> None:
        self.participant, self.key = participant, key
        self.refused: set[UUID] = set()
        """UETRs of payments that it does not know."""
        self.proxy = Proxy(participant, self._answer, on_point)

    def _answer(self, message: Message) -> Answer:
        if not message.path.endswith("/v1/leg-authorisations"):
            return Answer(404, _JSON, b"{}")
        results = [self._judge(leg) for leg in json.loads(message.body)["legs"]]
        return Answer(200, _JSON, json.dumps({"results": results}).encode())

    def _judge(self, leg: dict[str, object]) -> dict[str, object]:
        instruction = str(leg["instruction_id"])
        if UUID(instruction) in self.refused:
            return {"instruction_id": instruction, "refusal": "settlement-not-found"}
        terms = TransferTerms.model_validate(leg["terms"])
        valid_until = system_clock() + SIGNATURE_LIFE
        token = sign_instruction(terms, ledger=str(leg["ledger"]), valid_until=valid_until, key=self.key)
        return {"instruction_id": instruction, "token": token}
