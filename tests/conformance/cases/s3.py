"""S3, on moto."""

from __future__ import annotations

from tests.conformance.cases._objects import objects_case
from tests.connectors.places import s3_place

CASE = objects_case(s3_place, {}, {"wrong_password": "moto lets every key in"})
