"""What decides whether two descriptors may be compared."""

from __future__ import annotations

from dataclasses import replace

import pytest

from worker.core.backbone_spec import BackboneSpec, spec_from_json
from worker.core.types import GridSize, SizePx
from worker.errors import BackboneMismatch

SPEC = BackboneSpec(
    name="tiny",
    revision="1",
    weights_sha256="ab" * 32,
    input_size=SizePx(28, 28),
    patch_px=14,
    grid=GridSize(2, 2),
    global_dim=4,
    patch_dim=4,
    patch_source="last_hidden_state",
    global_pooling="cls",
    mean_rgb=(0.5, 0.5, 0.5),
    std_rgb=(0.5, 0.5, 0.5),
    resize="stretch-bilinear",
    tau=0.6,
    licence="Apache-2.0",
    commercial_use=True,
    weights_bytes=1,
)


def test_json_round_trip() -> None:
    import json

    read = spec_from_json(json.loads(json.dumps(SPEC.to_json())))
    assert read == SPEC
    assert read.spec_hash == SPEC.spec_hash


@pytest.mark.parametrize(
    "change",
    [
        {"weights_sha256": "cd" * 32},
        {"input_size": SizePx(56, 56)},
        {"patch_source": "hidden_states[-1]"},
        {"global_pooling": "mean"},
        {"mean_rgb": (0.4, 0.5, 0.5)},
        {"resize": "stretch-bicubic"},
    ],
)
def test_what_changes_descriptors_changes_the_hash(change: dict[str, object]) -> None:
    assert replace(SPEC, **change).spec_hash != SPEC.spec_hash  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change", [{"name": "other"}, {"revision": "2"}, {"tau": 0.5}, {"licence": "MIT"}]
)
def test_what_only_describes_does_not(change: dict[str, object]) -> None:
    assert replace(SPEC, **change).spec_hash == SPEC.spec_hash  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"new_field": 1}, {"grid": None}])
def test_a_spec_of_another_version_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(BackboneMismatch, match="tiny"):
        spec_from_json({**SPEC.to_json(), **change})
