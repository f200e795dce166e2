"""README.txt of a bundle: for a person who has never seen RIS."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

_WIDTH = 90

_TEXT = """\
EVIDENCE BUNDLE

WHAT THIS IS

{made_utc}: RIS (Region-to-Image Search) {ris_version} exported these hits of one search. In a \
search a person draws a region on one picture, and the program lists other pictures in which \
something looks like it. This bundle holds the picture that was searched from, with its region; \
each chosen hit as the picture that RIS keeps, unchanged; a second copy of it on which the \
matching parts are tinted green; and the numbers from which the program took its decision.

Search {query_id}, asked {asked_utc} by {asked_by}.
Exported by {exported_by}, evidence id {evidence_id}.
All times are UTC.

HITS

{hits}

WHAT IT SHOWS, AND WHAT IT DOES NOT

If it verifies (below), nothing in this file was changed since it was signed with that key, and \
the tinted parts and the score of every hit marked "match can be made \
again" follow from the numbers in it.

It does not show that two pictures show the same person or thing. RIS compares appearance: it \
knows no faces, number plates or identities. The score orders hits within one search. It is no \
probability. A person has to look at the pictures, and at the footage before and after.

It does not show that the footage was genuine before RIS recorded it, or that a camera's clock \
was right: manifest.json names where each time comes from, and the SHA-256 of the recording \
that a frame was taken from (of a live camera there is no file). The kept pictures are JPEG \
copies of single frames, smaller than the recording may be, and black where a privacy mask was \
in force.

It does not show what was not found: other hits of the search, and frames that were never \
indexed, are not in it.

HOW TO VERIFY

1. Get the fingerprint of the signing key from whoever runs RIS, by another way than this file: \
in person, in print, by telephone. The key in this file alone proves nothing: anybody can make \
one. This file says:

   {signed_by}

2. With RIS installed: ris evidence verify FILE --key FINGERPRINT
   It checks every byte of this file. With --rematch it makes every match again.

3. Without RIS, with OpenSSL 3 and common tools, in the folder this file was unpacked to:

   openssl pkey -pubin -in public_key.pem -outform DER | sha256sum
   openssl pkeyutl -verify -pubin -inkey public_key.pem -rawin \\
     -in manifest.json -sigfile manifest.sig
   sha256sum --check SHA256SUMS

The first line must give the fingerprint from step 1. manifest.json must hold the same SHA-256 \
of every file, SHA256SUMS included; the last line compares them with the files.

WHAT THE FILES ARE

manifest.json              everything that is known, with the SHA-256 of each file
manifest.sig               Ed25519 signature of manifest.json (64 bytes)
public_key.pem             the key to check it with
query/                     the picture searched from; the same with the region drawn
hits/NNNN/picture.jpg      hit number NNNN, as kept
hits/NNNN/picture-with-match.jpg   the same, what matched in green, a box about the subject
hits/NNNN/*.npy, search/   numbers (NumPy arrays): descriptors of picture and search
"""


def readme_text(told: Mapping[str, Any], signed_by: str) -> str:
    """The text for a manifest's fields, lines of at most 90 characters but for commands."""
    query, export = told["query"], told["export"]
    filled = _TEXT.format(
        made_utc=told["made_utc"],
        ris_version=told["ris_version"],
        query_id=query["query_id"],
        asked_utc=query["asked_utc"],
        asked_by=_who(query["asked_by"]),
        exported_by=_who(export["asked_by"]),
        evidence_id=export["evidence_id"],
        hits="\n".join(_hit(hit) for hit in told["hits"]),
        signed_by=signed_by,
    )
    return "".join(_wrapped(line) + "\n" for line in filled.splitlines())


def _who(asked_by: Mapping[str, Any]) -> str:
    if asked_by["key_id"] is None:
        return "a person at the command line"
    return f"API key {asked_by['key_id']} ({asked_by['label']})"


def _hit(hit: Mapping[str, Any]) -> str:
    frame, again = hit["frame"], hit["rematch"]
    if again is None:
        words = f"match cannot be made again: {hit['why_no_rematch']}"
    elif again["same_region"] and again["same_score"] is not False:
        words = "match can be made again"
        if again["same_score"] is None:
            words += " (the region; this kind of score depends on other frames)"
    else:
        words = (
            "made again the match is not the recorded one: the descriptors were stored anew since"
        )
    return (
        f"{hit['rank']:>4}  {frame['camera_name']}, {frame['t_utc']} (time:"
        f" {frame['segment']['time_source']}), score {hit['record']['score']:.4f}; {words}"
    )


def _wrapped(line: str) -> str:
    if line.startswith("   ") and not line.lstrip()[:1].isdigit():
        return line
    indent = "      " if line.startswith(" ") else ""
    return textwrap.fill(line, _WIDTH, subsequent_indent=indent, break_on_hyphens=False)
