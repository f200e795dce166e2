"""`ris webhook`: addresses that are told of events."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from models.events import Webhook
from models.repositories import events as event_record
from worker.accepting import webhooks as accepting
from worker.accepting.webhooks import AT_COMMAND_LINE, shown_url
from worker.admin.output import Json, console, emit_json, table, when
from worker.errors import InputInvalid
from worker.runtime import process_context

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Addresses that are told of events.",
)
_MOST = 100_000

WebhookId = Annotated[int, typer.Argument(help="Id of the webhook, as `ris webhook ls` shows it.")]


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Who is told.")],
    url: Annotated[
        str, typer.Argument(help="http or https address; - reads it from standard input.")
    ],
    kind: Annotated[
        list[str] | None, typer.Option(help="Kind of event; repeat for several. Default: all.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Tell an address of events. Its secret is shown this once."""
    context = process_context()
    address = sys.stdin.readline().strip() if url == "-" else url
    if not address:
        raise InputInvalid("no address came on standard input")
    address = accepting.checked_url(context.settings, address)
    with context.db.transaction() as session:
        webhook, secret = accepting.create_webhook(
            session, AT_COMMAND_LINE, name=name, url=address, kinds=kind or []
        )
    if as_json:
        emit_json(_json(webhook, {}) | {"secret": secret})
        return
    console.print(
        f"webhook {webhook.id}, secret shown this once: {secret}", markup=False, soft_wrap=True
    )


@app.command(name="ls")
def list_webhooks(as_json: Json = False) -> None:
    """List webhooks and how they go."""
    with process_context().db.transaction() as session:
        found = event_record.list_webhooks(session, None, 0, _MOST)
    if as_json:
        emit_json([_json(webhook, counts) for webhook, counts in found])
        return
    table(
        None,
        ["id", "name", "address", "events", "state", "waiting", "given up", "last delivered"],
        [
            (
                webhook.id,
                webhook.name,
                shown_url(webhook.url),
                ", ".join(webhook.kinds),
                webhook.state,
                counts.get("pending", 0),
                counts.get("dead", 0),
                when(webhook.last_delivered_at),
            )
            for webhook, counts in found
        ],
    )


@app.command()
def test(webhook_id: WebhookId) -> None:
    """Have a test event delivered."""
    with process_context().db.transaction() as session:
        event_id = accepting.send_test(session, AT_COMMAND_LINE, webhook_id)
    console.print(f"event {event_id} is on its way; `ris webhook ls` shows how it goes")


@app.command()
def rotate(webhook_id: WebhookId) -> None:
    """Sign with another secret; for a day the former one signs as well."""
    with process_context().db.transaction() as session:
        _, secret = accepting.rotate_secret(session, AT_COMMAND_LINE, webhook_id)
    console.print(
        f"webhook {webhook_id}, secret shown this once: {secret}", markup=False, soft_wrap=True
    )


@app.command()
def rm(webhook_id: WebhookId) -> None:
    """Tell it nothing more."""
    with process_context().db.transaction() as session:
        accepting.remove_webhook(session, AT_COMMAND_LINE, webhook_id)
    console.print(f"webhook {webhook_id}: removed")


def _json(webhook: Webhook, counts: dict[str, int]) -> dict[str, Any]:
    return {
        "webhook_id": webhook.id,
        "name": webhook.name,
        "url": shown_url(webhook.url),
        "kinds": webhook.kinds,
        "key_id": webhook.key_id,
        "state": webhook.state,
        "failures": webhook.failures,
        **{state: counts.get(state, 0) for state in ("pending", "delivered", "dead")},
        "last_delivered_at": webhook.last_delivered_at,
        "created_at": webhook.created_at,
    }
