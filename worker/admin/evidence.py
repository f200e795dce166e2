"""`ris evidence`: hits as signed bundles, and what checks them."""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from models.repositories import evidence as evidence_record
from models.repositories import search as search_record
from worker.accepting.desk import COMMAND_LINE
from worker.accepting.evidence import bundle_of, order_export
from worker.accepting.queries import discard_uploads
from worker.admin.interrupts import pause
from worker.admin.output import Json, console, emit_json, size, table
from worker.bundle.archive import MAX_ARCHIVE_BYTES
from worker.bundle.checking import CheckedBundle, check_bundle
from worker.bundle.manifest import sha256_of
from worker.bundle.signing import fingerprint, own_key, trusted_fingerprint
from worker.config import settings
from worker.context import Context
from worker.errors import (
    EvidenceInvalid,
    InputInvalid,
    NotFound,
    SetupFailed,
    Timeout,
    error_of_code,
)
from worker.evidence_check import RematchReport, check_matches
from worker.runtime import BackboneCache, process_context

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Hits as signed bundles, and what checks them.",
)
_POLL_S = 0.1


@app.command()
def export(
    query_id: Annotated[str, typer.Argument(help="Id of the query.")],
    ranks: Annotated[str, typer.Option(help="Hits to export, by rank: 1,2,5.")] = "1",
    out: Annotated[Path, typer.Option(help="The bundle; a file that is there is kept.")] = Path(
        "evidence.zip"
    ),
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the bundle.")] = 120.0,
    as_json: Json = False,
) -> None:
    """Write some hits of a query, with what they were made from, as one signed file."""
    if out.exists():
        raise InputInvalid(f"{out} is there already: name another file with --out")
    context = process_context()
    query, wanted = _uuid(query_id), _ranks(ranks)
    with context.db.transaction() as session:
        found = search_record.find_query(session, query)
        if found is None:
            raise NotFound(f"query {query} is not known")
        accepted = order_export(session, COMMAND_LINE, found, wanted)
    context.ring(accepted.job_id, "evidence")
    if accepted.given_up:
        discard_uploads(context, accepted.given_up)
    signed_by = _wait(context, query, accepted.evidence_id, timeout)
    with context.db.transaction() as session:
        content = bundle_of(context, session, COMMAND_LINE, query, accepted.evidence_id)
    _write(out, content)
    told = {
        "evidence_id": str(accepted.evidence_id),
        "file": str(out.resolve()),
        "bytes": len(content),
        "sha256": sha256_of(content),
        "signed_by": signed_by,
    }
    if as_json:
        emit_json(told)
        return
    console.print(f"{out}: {size(len(content))}, SHA-256 {told['sha256']}", soft_wrap=True)
    console.print(f"signed by {signed_by} (`ris evidence key`)", soft_wrap=True)


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="A bundle.")],
    key: Annotated[
        str | None,
        typer.Option(
            help="The key it must be signed with: fingerprint, or file with the public key."
            " Default: this RIS's own."
        ),
    ] = None,
    rematch: Annotated[
        bool, typer.Option("--rematch", help="Also make every match again, from the pictures too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check every byte of a bundle and who signed it; needs no database. Exit 1 where something is
    wrong, or where it cannot be said whose key signed it."""
    checked = check_bundle(_read(file), _trusted(key))
    report = None
    if rematch and not checked.problems:
        report = check_matches(checked, BackboneCache(settings()))
    problems = [*checked.problems, *(() if report is None else report.problems)]
    right = not problems and checked.signer == "trusted"
    if as_json:
        emit_json(
            {
                "file": str(file),
                "intact": not checked.problems,
                "signer": checked.signer,
                "signed_by": checked.signed_by,
                "problems": problems,
                "rematch": None if report is None else [asdict(hit) for hit in report.hits],
            }
        )
    else:
        _show(file, checked, report, problems)
    if not right:
        raise SystemExit(1)


@app.command()
def key(
    pem: Annotated[bool, typer.Option("--pem", help="Print the public key itself.")] = False,
    as_json: Json = False,
) -> None:
    """The key that this RIS signs with: its fingerprint, to be told to who verifies."""
    public = own_key(settings()).public_pem
    if as_json:
        emit_json({"fingerprint": fingerprint(public), "public_key": public.decode()})
    elif pem:
        console.print(public.decode(), end="", markup=False, soft_wrap=True)
    else:
        console.print(fingerprint(public), markup=False, soft_wrap=True)


def _uuid(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise InputInvalid(f"{text!r} is no id of a query") from None


def _ranks(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputInvalid(f"--ranks are numbers with commas between them, got {text!r}") from None


def _wait(context: Context, query_id: uuid.UUID, evidence_id: uuid.UUID, timeout_s: float) -> str:
    """Poll until the bundle is made; returns the fingerprint of the key that signed it."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        with context.db.transaction() as session:
            found = evidence_record.find(session, query_id, evidence_id)
        if found is None:
            raise NotFound(f"query {query_id} was erased with its footage, or forgotten")
        made, job = found
        if job.state == "failed":
            raise error_of_code(job.error_code or "internal", job.error_detail or "")
        if job.state == "done":
            return str(made.signed_by)
        if time.monotonic() > deadline_s:
            why = f" ({job.retry_detail})" if job.retry_detail else ""
            raise Timeout(
                f"evidence {evidence_id} is {job.state} after {timeout_s:.0f} s{why}: are the"
                " workers up (`ris doctor`)?"
            )
        pause(_POLL_S)


def _write(path: Path, content: bytes) -> None:
    """Durably, for the owner alone, and never over another file."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> bytes:
    try:
        if path.is_file() and path.stat().st_size <= MAX_ARCHIVE_BYTES:
            return path.read_bytes()
    except OSError as error:
        raise EvidenceInvalid(f"{path}: {error.strerror or error}") from None
    raise EvidenceInvalid(f"{path} is no file of at most {MAX_ARCHIVE_BYTES} bytes")


def _trusted(key: str | None) -> str | None:
    if key is not None:
        return trusted_fingerprint(key)
    try:
        return fingerprint(own_key(settings(), make=False).public_pem)
    except SetupFailed:
        return None


def _show(
    file: Path, checked: CheckedBundle, report: RematchReport | None, problems: list[str]
) -> None:
    for problem in problems:
        console.print(problem, markup=False, soft_wrap=True)
    count = len(checked.files)
    intact = "damaged, or changed" if checked.problems else f"intact: {count} files as exported"
    console.print(f"{file}: {intact}", markup=False, soft_wrap=True)
    words = {
        "trusted": "signed with the key that was named, or this RIS's own",
        "other": "NOT signed with the key that was named, or this RIS's own",
        "not checked": "whose key signed it is NOT CHECKED: give --key with the fingerprint that"
        " you got from whoever runs that RIS",
    }
    console.print(f"signature: {words[checked.signer]}", markup=False, soft_wrap=True)
    if checked.signed_by is not None:
        console.print(f"key in the bundle: {checked.signed_by}", markup=False, soft_wrap=True)
    if report is None:
        return
    rows: list[tuple[Any, ...]] = []
    for hit in report.hits:
        near = hit.picture
        rows.append(
            (
                hit.rank,
                _yes(hit.remade),
                _yes(hit.is_record),
                None if near is None else round(near.mean_cosine, 4),
                None if near is None else f"{near.shared_cells:.0%}",
                None
                if near is None or near.score_difference is None
                else f"{near.score_difference:+.4f}",
                hit.detail,
            )
        )
    columns = ("rank", "same bits", "as recorded", "picture", "region", "score", "")
    table("Matches made again", columns, rows)


def _yes(said: bool | None) -> str:
    return "" if said is None else "yes" if said else "NO"
