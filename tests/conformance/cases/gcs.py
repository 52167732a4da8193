"""Google Cloud Storage, on fake-gcs-server."""

from __future__ import annotations

from tests.conformance.cases._objects import objects_case
from tests.connectors.places import gcs_place

CASE = objects_case(gcs_place, {}, {"wrong_password": "the server asks for no login"})
