"""Program templates in files: those beside this module, and an institution's own, which a publisher has signed.

`NAME-vVERSION.toml` is the template. Beside an institution's own lies `NAME-vVERSION.jws`: a publisher's compact JWS
(typ `jiaozi-program-template+jws`) over name, version, day of coming into force and the SHA-256 of the template's
canonical JSON. The service signs every template that it offers with its own key in the same way, so that a customer can
show later what was offered.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from pydantic import ValidationError

from kernel.crypto import jws
from kernel.crypto.keys import PublicKey, SigningKey
from wallet.domain.program_templates import Template
from wallet.domain.programs import ProgramInvalid

TEMPLATE_TYP = "jiaozi-program-template+jws"
TEMPLATE_BYTES_MAX = 64 * 1024
TEMPLATES_MAX = 1_000

_DIRECTORY = Path(__file__).parent / "program_templates"
TemplateBook = Mapping[tuple[str, int], Template]


def read_template(path: Path) -> Template:
    """Raises: ValueError naming the file and what is wrong in it; OSError."""
    data = path.read_bytes()
    if len(data) > TEMPLATE_BYTES_MAX:
        raise ValueError(f"{path}: larger than {TEMPLATE_BYTES_MAX} bytes")
    try:
        template = Template.model_validate(tomllib.loads(data.decode("utf-8")))
    except (ValidationError, ProgramInvalid, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from None
    if path.name != f"{template.name}-v{template.version}.toml":
        raise ValueError(f"{path}: holds {template.name} version {template.version}; name the file after it")
    return template


@lru_cache(maxsize=1)
def builtin_templates() -> TemplateBook:
    """Those that come with the program."""
    return _book([read_template(path) for path in sorted(_DIRECTORY.glob("*.toml"))])


def load_templates(directory: Path | None, publishers: Sequence[PublicKey]) -> TemplateBook:
    """The built-in ones, and those of the directory, each signed by a publisher. Raises: ValueError, OSError."""
    if directory is None:
        return builtin_templates()
    own = []
    for path in sorted(directory.glob("*.toml")):
        template = read_template(path)
        signature = path.with_suffix(".jws")
        if not signature.exists():
            raise ValueError(f"{path}: no publisher has signed it; {signature.name} is missing")
        verify_template(template, signature.read_text(encoding="ascii").strip(), publishers)
        own.append(template)
    return _book([*builtin_templates().values(), *own])


def sign_template(template: Template, key: SigningKey) -> str:
    return jws.sign(_signed_payload(template), key, typ=TEMPLATE_TYP)


def verify_template(template: Template, token: str, publishers: Sequence[PublicKey]) -> None:
    """Raises: ValueError unless one of the publishers has signed exactly this template."""
    for key in publishers:
        try:
            payload = jws.verify(token, key, typ=TEMPLATE_TYP)
        except jws.InvalidJws:
            continue
        if payload == _signed_payload(template):
            return
    raise ValueError(f"{template.name} version {template.version}: the signature is no publisher's, or of another text")


def _signed_payload(template: Template) -> bytes:
    return jws.canonical_json(
        {
            "name": template.name,
            "version": template.version,
            "in_force_from": template.in_force_from.isoformat(),
            "sha256": template.sha256.hex(),
        }
    )


def _book(templates: Sequence[Template]) -> TemplateBook:
    if len(templates) > TEMPLATES_MAX:
        raise ValueError(f"more than {TEMPLATES_MAX} templates")
    book = {(template.name, template.version): template for template in templates}
    if len(book) != len(templates):
        raise ValueError("two templates have one name and version")
    return book
