"""Goal: an institution's key signs inside a PKCS#11 module, and what comes out is what every verifier here takes.
Method: SoftHSM2, a module in software, with a token and keys of its own; skipped in one line where it is not installed
(`apt-get install softhsm2`, `pip install python-pkcs11`); with JIAOZI_NO_SKIP=1 that is a failure.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from kernel.clock import system_clock
from kernel.crypto import jws
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import KeyRefused, PrivateKey, Suite
from kernel.crypto.pkcs11 import ModuleKey, ModuleUnusable, load_signing_key
from kernel.ids import new_uuid7
from ledger.contract import INSTRUCTION_TYP, TransferTerms, sign_instruction

MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")
TOKEN, PIN = "jiaozi", "123456"
ED25519_OID = bytes.fromhex("06032b6570")
"""1.3.101.112, as CKA_EC_PARAMS."""


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    missing = [
        what
        for what, is_there in (
            ("SoftHSM2 (apt-get install softhsm2)", MODULE.exists() and shutil.which("softhsm2-util")),
            ("python-pkcs11 (pip install python-pkcs11)", importlib.util.find_spec("pkcs11")),
        )
        if not is_there
    ]
    if missing and os.environ.get("JIAOZI_NO_SKIP") == "1":
        pytest.fail(f"not installed: {', '.join(missing)}")
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("token")
    (folder / "tokens").mkdir()
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder / 'tokens'}\nobjectstore.backend = file\n")
    os.environ["SOFTHSM2_CONF"] = str(folder / "softhsm2.conf")
    command = ["softhsm2-util", "--init-token", "--free", "--label", TOKEN, "--so-pin", "12345678", "--pin", PIN]
    subprocess.run(command, check=True, capture_output=True)
    api = importlib.import_module("pkcs11")
    with api.lib(str(MODULE)).get_token(token_label=TOKEN).open(rw=True, user_pin=PIN) as session:
        _make(api, session, "ed", api.KeyType.EC_EDWARDS, ED25519_OID, api.Mechanism.EC_EDWARDS_KEY_PAIR_GEN)
        curve = importlib.import_module("pkcs11.util.ec").encode_named_curve_parameters("secp256r1")
        _make(api, session, "ec", api.KeyType.EC, curve, api.Mechanism.EC_KEY_PAIR_GEN)
        _make(api, session, "soft", api.KeyType.EC, curve, api.Mechanism.EC_KEY_PAIR_GEN, is_extractable=True)
    yield api
    del os.environ["SOFTHSM2_CONF"]


def _make(
    api: Any, session: Any, label: str, kind: Any, curve: bytes, mechanism: Any, *, is_extractable: bool = False
) -> None:
    session.create_domain_parameters(kind, {api.Attribute.EC_PARAMS: curve}, local=True).generate_keypair(
        mechanism=mechanism,
        label=label,
        store=True,
        private_template={api.Attribute.SENSITIVE: not is_extractable, api.Attribute.EXTRACTABLE: is_extractable},
    )


def key(label: str, *, pin: str = PIN) -> ModuleKey:
    return ModuleKey(MODULE, token=TOKEN, label=label, pin=lambda: pin)


@pytest.mark.parametrize(("label", "suite"), [("ed", Suite.ED25519), ("ec", Suite.ECDSA_P256_SHA256)])
def test_signature_from_the_module_verifies_everywhere(api: Any, label: str, suite: Suite) -> None:
    signer = key(label)
    signature = signer.sign(b"hello")
    assert (signer.suite, len(signature)) == (suite, 64)
    assert signer.public.verify(b"hello", signature) and not signer.public.verify(b"hallo", signature)
    another = key(label)
    assert signer.thumbprint == another.thumbprint
    another.close()  # logs the whole process out
    assert signer.public.verify(b"once more", signer.sign(b"once more"))
    signer.close()


def test_threads_share_a_key(api: Any) -> None:
    signer = key("ed")
    with ThreadPoolExecutor(4) as threads:
        signatures = list(threads.map(signer.sign, [bytes([number]) for number in range(32)]))
    assert all(signer.public.verify(bytes([number]), item) for number, item in enumerate(signatures))
    signer.close()


def test_a_closed_session_is_opened_again(api: Any) -> None:
    signer = key("ec")
    signer._session.close()
    assert signer.public.verify(b"again", signer.sign(b"again"))
    signer.close()


def test_what_cannot_be_used_is_refused(api: Any) -> None:
    with pytest.raises(ModuleUnusable, match="nothing"):
        key("nothing")
    with pytest.raises(ModuleUnusable, match="ed"):
        key("ed", pin="000000")
    with pytest.raises(KeyRefused, match="taken out"):
        key("soft")
    with pytest.raises(ModuleUnusable):
        ModuleKey(Path("/nowhere.so"), token=TOKEN, label="ed", pin=lambda: PIN)


def test_a_service_signs_with_the_key_that_its_settings_name(api: Any, tmp_path: Path) -> None:
    pin = tmp_path / "pin"
    pin.write_text(f"{PIN}\n")
    pin.chmod(0o600)
    named = tmp_path / "signing.json"
    document = {"module": str(MODULE), "token": TOKEN, "label": "ed", "pin_path": str(pin)}
    named.write_text(json.dumps(document))
    signer = load_signing_key(named)
    request = httpx.Request(
        "POST", "http://ledger.test/v1/transfer-batches", content=b"{}", headers={"content-type": "application/json"}
    )
    RequestSigner(signer).sign(request)
    assert request.headers["signature"]
    terms = TransferTerms.model_validate(
        {"id": new_uuid7(), "kind": "exchange-in", "debit": 17, "credit": 18, "amount_minor": 5, "currency": "CNY"}
    )
    token = sign_instruction(terms, ledger="cny", valid_until=system_clock(), key=signer)
    jws.verify(token, signer.public, typ=INSTRUCTION_TYP)
    pin.chmod(0o644)
    with pytest.raises(KeyRefused, match="read by others"):
        load_signing_key(named)
    for wrong in ({**document, "more": "x"}, {**document, "label": 5}, [document]):
        named.write_text(json.dumps(wrong))
        with pytest.raises(KeyRefused, match="pin_path"):
            load_signing_key(named)
    pem = tmp_path / "signing.pem"
    PrivateKey.generate().save(pem)
    assert isinstance(load_signing_key(pem), PrivateKey)
